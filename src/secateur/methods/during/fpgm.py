"""FPGM: filters near the geometric median of their layer are zeroed softly while it trains."""

from typing import Any

from secateur.methods.during.soft_filter import soft_filter
from secateur.methods.registry import Method, method


@method(stage="during", paper="arXiv:1811.00250")
def fpgm(
    amount: float = 0.4,
    *,
    every: int = 100,
    scope: Any = "uniform",
    granularity: Any = "channel",
) -> Method:
    r"""Soft filter pruning by $\sum_j \lVert F_i - F_j \rVert_2$: what others can replace goes.

    Args:
        amount: Fraction of the filters of each layer.
        every: Steps between two looks; the paper's is an epoch.
        scope: Allocation over layers; the paper's is uniform.
        granularity: "channel" goes with all that is coupled, "row" is one layer's filter.

    Example:
        >>> fpgm(0.4).criterion
        'fpgm'
    """
    return soft_filter(amount, every=every, criterion="fpgm", scope=scope, granularity=granularity)
