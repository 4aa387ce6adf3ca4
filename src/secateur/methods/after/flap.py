"""FLAP: remove what fluctuates least, and put its mean into the bias of the next layer."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2312.11983")
def flap(amount: float = 0.2, *, scope: str = "global", compensate: bool = True) -> Method:
    """Heads (with their keys and values) and hidden neurons compete across all layers.

    A unit's score is the error that its mean leaves in the next layer's output, standardised over
    that layer (criterion ``fluctuation``); the recovery ``bias`` then adds the mean. Give
    ``keep={"params": 0.8}`` to let units count by what they cost, as in the paper.

    Args:
        amount: Fraction of the units removed.
        scope: ``global`` (the paper's AL-AM), or ``uniform`` (UL-UM).
        compensate: Put the means into biases, which are made where a layer has none.

    Example:
        >>> flap(0.2).recovery
        'bias'
    """
    return Method(
        amount,
        criterion="fluctuation",
        granularity="channel",
        scope=scope,
        kinds=("head", "channel"),
        recovery="bias" if compensate else None,
    )
