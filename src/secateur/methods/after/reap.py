"""REAP: remove the experts that add least where the router sends tokens to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import require_seen
from secateur.engine.padding import picked, valid_rows
from secateur.errors import BudgetError, PlanError
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.experts import chosen_at_once, parts, routed
from secateur.plan.gaps import Gap


@method(stage="after", paper="arXiv:2510.13999")
def reap(amount: float = 0.25) -> Method:
    """Every router loses the same number of experts, so that a stock config says it.

    Experts that saw no token in the calibration are kept, and named in the plan's notes.

    Args:
        amount: Fraction of the experts removed; with it, or a budget, whole rounds of one expert
            of every router go until it is met.

    Example:
        >>> reap(0.5).granularity
        'expert'
    """
    return Method(amount, granularity="expert", search=least_added)


def least_added(depth: Depth, enough: Callable[[Sequence[Gap]], bool]) -> list[Gap]:
    """The experts of lowest saliency, the same number of every router.

    Raises:
        BudgetError: Routers would have fewer experts left than they choose, or experts would have
            to go that no token has seen.
    """
    scores, tokens = saliency(depth)
    may = dict.fromkeys(gap.module for gap in depth.candidates)
    for name in may:
        unseen = (tokens[name] == 0).nonzero().flatten().tolist()
        if unseen:
            depth.notes.append(
                f"experts {', '.join(map(str, unseen))} of {name} saw no token: kept as they were"
            )
    order = {
        name: [j for j in scores[name].argsort().tolist() if tokens[name][j] > 0] for name in may
    }
    limit = min(
        min(len(order[name]), len(scores[name]) - chosen_at_once(depth.model, name)) for name in may
    )
    for count in range(limit + 1):
        singles = [Gap(name, experts=(j,)) for name in may for j in order[name][:count]]
        if enough(singles):
            return [Gap(n, experts=tuple(sorted(order[n][:count]))) for n in may if count]
    raise BudgetError(
        f"no more than {limit} experts of each router can go (routers choose several for each "
        "token, and experts that saw no token stay): ask for less, or give more calibration"
    )


def saliency(depth: Depth) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""$S_j = \frac{1}{|X_j|} \sum_{x \in X_j} g_j(x) \lVert f_j(x) \rVert_2$.

    $X_j$ are the tokens that the router sends to expert j, $g_j$ its weight there and $f_j$ what
    the expert alone makes of the token.

    Args:
        depth: The model and the batches.

    Returns:
        By module: the scores ``(experts,)``, 0 where no token came, and the numbers of tokens.

    Raises:
        PlanError: Experts are called with other things than tokens, choices and weights.
    """
    counts = routed(depth.model)
    sums = {n: torch.zeros(k, dtype=torch.float64) for n, k in counts.items()}
    tokens = {n: torch.zeros(k, dtype=torch.long) for n, k in counts.items()}

    def watch(name: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            chosen, weights, added = _alone(name, module, args, kwargs)
            sums[name].index_add_(0, chosen, weights.double() * added.double())
            tokens[name] += chosen.bincount(minlength=counts[name])

        return before

    with ExitStack() as stack:
        for name in counts:
            experts = depth.module(parts(depth.model, name)[1])
            hook = experts.register_forward_pre_hook(watch(name), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in depth.batches:
            depth.output(batch)
    for name, total in sums.items():
        require_seen(total, f"what the experts of {name} add")
    return {n: s / tokens[n].clamp(min=1) for n, s in sums.items()}, tokens


def _alone(name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """For every pair of a token and an expert chosen for it: which, its weight, its output's norm.

    Padding is no token. The experts themselves compute it: they are asked for one expert a token,
    with weight one.
    """
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    index = next((t for t in tensors if not t.is_floating_point() and t.dim() == 2), None)
    weights = [
        t for t in tensors if index is not None and t.shape == index.shape and t is not index
    ]
    states = [t for t in tensors if t.is_floating_point() and all(t is not w for w in weights)]
    if index is None or len(weights) != 1 or len(states) != 1 or len(states[0]) != len(index):
        raise PlanError(
            f"the experts of {name} are not called with (tokens, chosen experts, weights), so what "
            "each of them adds cannot be told"
        )
    pairs: dict[int, Tensor] = {
        id(states[0]): states[0].repeat_interleave(index.shape[1], 0),
        id(index): index.reshape(-1, 1),
        id(weights[0]): torch.ones_like(weights[0]).reshape(-1, 1),
    }
    given = [pairs.get(id(a), a) for a in args]
    named = {key: pairs.get(id(a), a) for key, a in kwargs.items()}
    added = module.forward(*given, **named)
    found = index, weights[0], added.float().norm(dim=-1).view(index.shape)
    valid = valid_rows(index, name)
    chosen, weight, norm = (picked(t, valid).flatten().cpu() for t in found)
    return chosen, weight, norm
