"""SLEB: leave out one block after another, each time the one the model misses least then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from secateur.errors import ConfigError
from secateur.methods.after.shortened_llama import inner
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.gaps import Gap


@method(stage="after", paper="arXiv:2402.09025")
def sleb(amount: float = 0.2, *, first: int = 1, last: int = 1) -> Method:
    """Every block that is left is tried in every step: blocks times steps forwards of the data.

    Args:
        amount: Fraction of the blocks removed.
        first: So many blocks at the beginning stay.
        last: So many blocks at the end stay.

    Example:
        >>> sleb(0.2).granularity
        'layer'
    """
    return Method(amount, granularity="layer", search=partial(greedy, first=first, last=last))


def greedy(
    depth: Depth, enough: Callable[[Sequence[Gap]], bool], *, first: int = 0, last: int = 0
) -> list[Gap]:
    """What goes, in order: always what leaves the lowest loss behind."""
    may = inner(depth, first, last)
    gone: list[Gap] = []
    while not enough(gone):
        if not may:
            raise ConfigError(f"first={first} and last={last} leave too few blocks that may go")
        losses = depth.losses(gone, may)
        gone.append(min(may, key=lambda gap: losses[gap]))
        may.remove(gone[-1])
    return gone
