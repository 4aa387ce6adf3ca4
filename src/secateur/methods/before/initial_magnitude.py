"""Magnitude at initialisation: the largest of the random weights stay, a baseline without data."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2009.08576")
def initial_magnitude(
    amount: float = 0.9, *, scope: Any = "global", granularity: Any = "element"
) -> Method:
    """Keep the weights that the initialisation has made largest, and train what is left.

    In one ranking over all layers those with few inputs win, as their weights are drawn larger;
    where that empties a layer, its largest weight stays.

    Args:
        amount: Fraction removed.
        scope: Allocation over layers; the paper's is global.
        granularity: What is kept or removed as one.

    Example:
        >>> initial_magnitude(0.9).scope
        'global'

    Paper:
        Frankle et al., Pruning neural networks at initialization: why are we missing the mark?
    """
    return Method(amount, criterion="magnitude", scope=scope, granularity=granularity)
