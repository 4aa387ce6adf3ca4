"""Channel LASSO: channels are selected by what the next layer needs, and that layer is refitted."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:1707.06168")
def channel_lasso(amount: float = 0.5) -> Method:
    """The same fraction of every layer's channels goes by criterion ``lasso``.

    Selection looks at the dense network; the refit goes from layer to layer, each on what the
    layers before it give by then.

    Args:
        amount: Fraction of the channels removed.

    Example:
        >>> channel_lasso(0.5).recovery
        'least-squares'
    """
    return Method(amount, criterion="lasso", granularity="channel", recovery="least-squares")
