"""Depth: the project's own recipe for fewer blocks, chosen by influence and bridged."""

from __future__ import annotations

from secateur.methods.after.shortgpt import least_turning
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2403.03853; arXiv:2505.02819")
def depth(amount: float = 0.2) -> Method:
    """The blocks that turn the stream least go, and the layers before the gaps take over.

    The choice is that of ``shortgpt``, the refit the recovery ``bridge``; both look at the dense
    model only, so that there are two passes over the data and no training.

    Args:
        amount: Fraction of the blocks removed.

    Example:
        >>> depth(0.2).recovery
        'bridge'
    """
    return Method(amount, granularity="layer", search=least_turning, recovery="bridge")
