"""ThiNet: channels go that the next layer misses least together, and that layer is refitted."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:1707.06342")
def thinet(amount: float = 0.5) -> Method:
    """The same fraction of every layer's channels goes by criterion ``thinet``.

    Where the paper scales each channel that is left by one number, all weights are refitted. Its
    fine-tuning follows with ``recovery=["least-squares", "fine-tune"]``.

    Args:
        amount: Fraction of the channels removed.

    Example:
        >>> thinet(0.5).criterion
        'thinet'
    """
    return Method(amount, criterion="thinet", granularity="channel", recovery="least-squares")
