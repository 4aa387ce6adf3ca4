"""Soft filter pruning: the weakest filters are set to zero again and again, and train on."""

from typing import Any

from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@method(stage="during", paper="arXiv:1808.06866")
def soft_filter(
    amount: float = 0.3,
    *,
    every: int = 100,
    criterion: Any = "l2",
    scope: Any = "uniform",
    granularity: Any = "channel",
) -> Method:
    r"""Every ``every`` steps the filters of smallest $\lVert F_i \rVert_2$ become zero.

    All of them are trained between two looks, so that a filter that was zeroed may come back;
    norms and biases are touched only at the end, when the last choice becomes final. Behind a
    batch norm the gradient of a filter of zeros is divided by almost nothing; it is scaled down to
    the root mean square of the gradients of filters that are not zero.

    Args:
        amount: Fraction of the filters of each layer.
        every: Steps between two looks; the paper's is an epoch.
        criterion: Which filters are weak.
        scope: Allocation over layers; the paper's is uniform.
        granularity: "channel" goes with all that is coupled, "row" is one layer's filter.

    Example:
        >>> soft_filter(0.3).schedule.at(0.1)
        0.3
    """
    return Method(
        amount,
        criterion=criterion,
        granularity=granularity,
        scope=scope,
        schedule=find("linear", amount, initial=amount),
        every=every,
        soft=True,
    )
