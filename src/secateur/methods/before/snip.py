"""SNIP: keep the connections whose absence the loss would notice most, before any training."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:1810.02340")
def snip(amount: float = 0.9, *, granularity: Any = "element") -> Method:
    r"""Keep globally the weights of largest $|g_j w_j|$, the gradient taken on the data given.

    $g$ is the mean over the batches given; one batch, as in the paper, is one.

    Args:
        amount: Fraction removed.
        granularity: What is kept or removed as one.

    Example:
        >>> snip(0.9).criterion
        'saliency'
    """
    return Method(amount, criterion="saliency", scope="global", granularity=granularity)
