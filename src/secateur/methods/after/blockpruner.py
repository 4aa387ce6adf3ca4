"""BlockPruner: like SLEB, but attention and MLP of a block go one without the other."""

from __future__ import annotations

from secateur.methods.after.sleb import greedy
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2406.10594")
def blockpruner(amount: float = 0.2) -> Method:
    """Greedy over the parts that blocks add to their input, whatever these are.

    Give ``keep={"params": 0.8}`` to let parts count by their size.

    Args:
        amount: Fraction of the parts removed.

    Example:
        >>> blockpruner(0.2).granularity
        'sublayer'
    """
    return Method(amount, granularity="sublayer", search=greedy)
