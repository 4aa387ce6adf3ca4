"""Shortened-LLaMA: leave out the blocks without which the loss rises least, all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from secateur.engine.statistics import collect
from secateur.errors import ConfigError
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.gaps import Gap


@method(stage="after", paper="arXiv:2402.02834")
def shortened_llama(
    amount: float = 0.2, *, by: str = "perplexity", first: int = 0, last: int = 0
) -> Method:
    """Each block is judged alone, in the dense model.

    Args:
        amount: Fraction of the blocks removed.
        by: ``perplexity``: the loss without the block; ``taylor``: $\\sum |w g|$ over its matrices.
        first: So many blocks at the beginning stay, as in the paper's Taylor+ (4).
        last: So many blocks at the end stay (2).

    Example:
        >>> shortened_llama(0.2, by="taylor", first=4, last=2).granularity
        'layer'
    """
    if by not in ("perplexity", "taylor"):
        raise ConfigError(f"by={by!r} must be perplexity or taylor")
    search = partial(least_missed, by=by, first=first, last=last)
    return Method(amount, granularity="layer", search=search)


def least_missed(
    depth: Depth, enough: Callable[[Sequence[Gap]], bool], *, by: str, first: int, last: int
) -> list[Gap]:
    """The blocks that are missed least, until it is enough."""
    may = inner(depth, first, last)
    scores = depth.losses([], may) if by == "perplexity" else salience(depth, may)
    order = sorted(may, key=lambda gap: scores[gap])
    for count in range(len(order) + 1):
        if enough(order[:count]):
            return order[:count]
    raise ConfigError(f"first={first} and last={last} leave too few blocks that may go")


def inner(depth: Depth, first: int, last: int) -> list[Gap]:
    """What may go, but for that in so many first and last blocks."""
    stop = len(depth.blocks) - last
    return [gap for gap in depth.candidates if first <= depth.block_of(gap) < stop]


def salience(depth: Depth, gaps: Sequence[Gap]) -> dict[Gap, float]:
    """The sum of absolute weights times gradients of the mean loss, over matrices of each gap."""
    found = collect(depth.model, {"grad"}, depth.batches, loss=depth.loss).tensors
    scores = {}
    for gap in gaps:
        weights = depth.module(gap.module).named_parameters(prefix=gap.module)
        scores[gap] = sum(
            float((p.detach().float() * found[n].grad).abs().sum())
            for n, p in weights
            if p.dim() >= 2 and n in found
        )
    return scores
