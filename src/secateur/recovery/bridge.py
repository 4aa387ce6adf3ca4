"""Bridge: the block before a gap takes over what the blocks that were left out added."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import (
    Forward,
    inputs_of,
    require,
    require_finite,
    require_teacher,
    run,
    take,
)
from secateur.engine.padding import Tokens, picked
from secateur.engine.sequential import without_cache
from secateur.errors import ConfigError, DataError
from secateur.graph.forward import tensors_in
from secateur.measure.calling import device_of, evaluating, to_device, unfused
from secateur.recovery.bias import add_to_bias
from secateur.recovery.moments import Moments, is_transposed, weight_rows
from secateur.recovery.registry import member

_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_ONE_BATCH = 1.0  # which cannot be halved


@member("bridge")
@dataclass(frozen=True)
class Bridge:
    r"""Refit the last layer before each gap, so that it adds what the missing blocks added.

    In the dense model, $x_t$ is what reached the missing blocks for token $t$, $y_t$ what left
    them, and $h_t$ the input of the last layer $W$ of the block before that adds straight to the
    stream. It becomes $W + D$ with

    $$D = \arg\min \sum_t \lVert y_t - x_t - D h_t \rVert^2 / \lVert x_t \rVert^2
    + \lambda\, \bar g\, \lVert D \rVert^2,$$

    $\bar g$ the mean of the diagonal of $\sum_t h_t h_t^\top / \lVert x_t \rVert^2$. Tokens count
    by their relative error, as the norms of what follows see them; else a few huge ones decide. A
    layer with a bias takes up the mean too. One pass over the dense model; the model that is left
    has the same shape, and is as fast, as without.

    Args:
        ridge: $\lambda$; ``None``: of 0.01 to 10 the best on each half of the batches for what was
            fitted on the other; where none is better than nothing, nothing is changed.
        batches: how many batches to use; ``None``: all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: ReplaceMe, arXiv:2505.02819 (there a matrix behind the layer instead of the layer itself,
    and all tokens alike).
    """

    ridge: float | None = None
    batches: int | None = None
    forward: Forward | None = None

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Change ``model`` in place.

        Returns:
            ``layers``: of each layer that was refitted, by its name in the dense model, the
            relative error of the stream behind the gap before and after, and the ridge;
            ``skipped``: gaps that stay as they are, and why.

        Raises:
            ConfigError: a negative ridge.
            DataError: no teacher or data, batches that do not fit, numbers that are not finite.

        Example:
            >>> class Block(nn.Linear):
            ...     def forward(self, x):
            ...         return x + super().forward(x.relu())
            >>> dense = nn.Sequential(Block(2, 2), Block(2, 2), Block(2, 2))
            >>> import secateur as sec
            >>> small = sec.prune(dense, torch.randn(9, 2), method="shortgpt", amount=0.4,
            ...                   data=[torch.randn(9, 2)], recovery="bridge", progress=False)
            >>> len(small.model)
            2
        """
        if self.ridge is not None and self.ridge < 0:
            raise ConfigError(f"Bridge(ridge={self.ridge}): give 0 or more.")
        dense = require_teacher(teacher, model, "Bridge")
        source = require(data, "Bridge")
        require_finite(model)
        gaps, skipped = _gaps(dense, getattr(plan, "dropped", ()))
        with torch.no_grad(), evaluating(dense), unfused(), without_cache(dense):
            for number, given in enumerate(take(source, self.batches) if gaps else ()):
                batch = to_device(given, device_of(dense))
                for gap in [g for g in gaps if not g.layer]:
                    gap.layer = _adds_straight(dense, gap.before, batch, self.forward)
                    if not gap.layer:
                        skipped[gap.gone] = f"no linear layer of {gap.before} adds to its output"
                        gaps.remove(gap)
                tokens = Tokens(dense, inputs_of(batch))
                for gap, *rows in _seen(dense, gaps, tokens, batch, self.forward):
                    gap.halves[number % 2].add(*rows)
        layers: dict[str, dict[str, float]] = {}
        for gap in gaps:
            ridge = self.ridge if self.ridge is not None else _best_ridge(*gap.halves)
            if ridge is None:
                skipped[gap.gone] = "nothing learned on half of the batches helps on the other"
                continue
            seen = _together(*gap.halves)
            change = _solved(seen, ridge)
            small = model.get_submodule(gap.place + gap.layer.removeprefix(gap.before))
            weight = weight_rows(small)
            with torch.no_grad():
                weight += change[: weight.shape[1]].T.to(weight)
            if len(change) > weight.shape[1]:
                add_to_bias(small, change[-1])
            layers[gap.layer] = {
                "before": _error(seen), "after": _error(seen, change), "ridge": ridge
            }  # fmt: skip
        return {"recovery": "bridge", "layers": layers, "skipped": skipped}


@dataclass
class _Gap:
    """Blocks that were left out one after the other.

    Attributes:
        before: The block before them, which stays.
        gone: The last of them.
        place: The name of ``before`` in the model without them.
        layer: The last layer of ``before`` that adds to the stream.
        halves: What every other batch showed, in units of the length of what reached the gap.
    """

    before: str
    gone: str
    place: str
    layer: str = ""
    halves: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))


def _gaps(dense: nn.Module, dropped: Iterable[Any]) -> tuple[list[_Gap], dict[str, str]]:
    """Runs of blocks that are missing, and what cannot be bridged, with the reason."""
    lists: dict[str, set[str]] = {}
    skipped = {}
    for gap in dropped:
        owner, _, place = gap.module.rpartition(".")
        if gap.goes and gap.outputs is None:
            lists.setdefault(owner, set()).add(place)
        elif gap.goes:
            skipped[gap.module] = "a part of a block: only whole blocks are bridged"
    found = []
    for owner, gone in lists.items():
        prefix = f"{owner}." if owner else ""
        before, left = "", -1
        names = [n for n, _ in dense.get_submodule(owner).named_children()]
        for place, after in zip(names, [*names[1:], ""], strict=True):
            if place not in gone:
                before, left = place, left + 1
            elif after not in gone:  # the last of a run
                if before:
                    found.append(_Gap(prefix + before, prefix + place, f"{prefix}{left}"))
                else:
                    skipped[prefix + place] = "there is no block before it"
    return found, skipped


def _seen(
    dense: nn.Module, gaps: Iterable[_Gap], tokens: Tokens, batch: Any, forward: Forward | None
) -> Iterator[tuple[_Gap, Tensor, Tensor, Tensor]]:
    """Run the dense model; of each gap the layer's inputs, what reached it, and what left it.

    All are divided by the length of what reached it.
    """
    noted: dict[tuple[str, str], Tensor] = {}
    with ExitStack() as stack:

        def note(what: str, gap: _Gap, name: str) -> None:
            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                x = tensors_in((args, kwargs))[0] if what == "inputs" else _first(output)
                noted[what, gap.gone] = picked(x, tokens.rows(x, name)).float()

            module = dense.get_submodule(name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)

        for gap in gaps:
            note("inputs", gap, gap.layer)
            note("reached", gap, gap.before)
            note("left", gap, gap.gone)
        run(dense, batch, forward)
    for gap in gaps:
        inputs, reached, left = (noted[what, gap.gone] for what in ("inputs", "reached", "left"))
        if not bool(torch.isfinite(left).all()):
            raise DataError(f"what {gap.gone} gives is not finite on these batches: look for NaN")
        if dense.get_submodule(gap.layer).bias is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        length = reached.norm(dim=1, keepdim=True).clamp(min=1e-12)
        yield gap, inputs / length, reached / length, left / length


def _adds_straight(dense: nn.Module, block: str, batch: Any, forward: Forward | None) -> str:
    """The last linear layer of a block whose output is a summand of the block's; or nothing.

    What is added to the layer's output must come out of the block, unchanged.
    """
    module = dense.get_submodule(block)
    uses = Counter(id(p) for _, p in dense.named_parameters(remove_duplicate=False))
    called: list[str] = []
    found, finite = "", True

    def adds(name: str, args: Any, kwargs: Any, out: Tensor) -> bool:
        push = torch.linspace(-1, 1, out.shape[-1]).to(out) * out.std()
        hook = dense.get_submodule(name).register_forward_hook(lambda _, __, y: y + push)
        try:
            moved = _first(module.forward(*args, **kwargs)) - out
        finally:
            hook.remove()
        return bool(((moved - push).norm(dim=-1) / push.norm()).median() < 0.05)

    def replay(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal found, finite
        out = _first(output)
        finite = bool(torch.isfinite(out).all())
        for name in reversed(list(dict.fromkeys(called))):
            if weight_rows(dense.get_submodule(name)).shape[0] == out.shape[-1]:
                found = found or (name if adds(name, args, kwargs, out) else "")

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(replay, with_kwargs=True).remove)
        for inner, layer in module.named_modules(prefix=block):
            known = isinstance(layer, nn.Linear) or is_transposed(layer)
            if known and uses[id(layer.weight)] == 1:
                note = lambda *_, name=inner: called.append(name)  # noqa: E731
                stack.callback(layer.register_forward_pre_hook(note).remove)
        run(dense, batch, forward)
    if not finite:
        raise DataError(f"what {block} gives is not finite on the first batch: look for NaN")
    return found


def _best_ridge(one: Moments, other: Moments) -> float | None:
    """What serves each half best for what was fitted on the other; None: nothing does."""
    if not (one.count and other.count):
        return _ONE_BATCH

    def loss(ridge: float | None) -> float:
        return sum(
            tried.count * _error(tried, None if ridge is None else _solved(fitted, ridge)) ** 2
            for fitted, tried in ((one, other), (other, one))
        )

    return min((None, *_RIDGES), key=loss)


def _together(one: Moments, other: Moments) -> Moments:
    if not other.count:
        return one
    return Moments(
        one.count + other.count,
        one.gram + other.gram,
        one.cross + other.cross,
        error_squares=one.error_squares + other.error_squares,
    )


def _solved(seen: Moments, ridge: float) -> Tensor:
    """The change as (inputs, outputs); that of the bias in the last row, if there is one."""
    gram = seen.gram.clone()
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-30))
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):  # no ridge and inputs that follow from one another: the smallest change
        return torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ seen.cross
    return torch.cholesky_solve(seen.cross, factor)


def _error(seen: Moments, change: Tensor | None = None) -> float:
    """Root of the mean squared relative error of the stream behind the gap."""
    total = seen.error_squares
    if change is not None:
        total = total + ((seen.gram @ change - 2 * seen.cross) * change).sum()
    return float((total.clamp(min=0) / seen.count).sqrt())


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
