"""Random pruning: a mask that looks at nothing, the baseline of everything."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2202.02643", name="random")
def random(amount: float = 0.9, *, scope: Any = "erk", granularity: Any = "element") -> Method:
    """Keep weights at random, as many of each layer as the scope says, and train what is left.

    Args:
        amount: Fraction removed.
        scope: Allocation over layers.
        granularity: What is kept or removed as one.

    Example:
        >>> random(0.8).scope
        'erk'
    """
    return Method(amount, criterion="random", scope=scope, granularity=granularity)
