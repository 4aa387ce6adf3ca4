"""DCP: channels stay that tell classes apart, and what is left is refitted and trained."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:1810.11809")
def dcp(amount: float = 0.5, *, losses: int = 3, refits: int = 1) -> Method:
    """The same fraction of every layer's channels goes by criterion ``discrimination``.

    The layers are then refitted by least squares, as the greedy search does on the way, and all of
    the network is fine-tuned. The paper fine-tunes with the additional losses too.

    Args:
        amount: Fraction of the channels removed.
        losses: Classifiers on inner layers, besides the network's own loss.
        refits: Steps of gradient descent after each channel that is added to a layer.

    Example:
        >>> dcp(0.5).recovery
        ['least-squares', 'fine-tune']
    """
    return Method(
        amount,
        criterion=("discrimination", {"losses": losses, "refits": refits}),
        granularity="channel",
        recovery=["least-squares", "fine-tune"],
    )
