"""Asymptotic soft filter pruning: ever more filters are zeroed, most of them early."""

from dataclasses import replace
from typing import Any

from secateur.methods.during.soft_filter import soft_filter
from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


def asymptotic(progress: float, initial: float, final: float) -> float:
    r"""$P(t) = P_0 + (P_1 - P_0) \frac{1 - x^{8t}}{1 - x^8}$, three quarters of the way at 1/8.

    Example:
        >>> [round(asymptotic(t, 0, 0.4), 4) for t in (0, 1 / 8, 1)]
        [0.0, 0.3, 0.4]
    """
    x = 0.0
    for _ in range(50):  # 1 - x = 3/4 (1 - x^8); contracts by 8 * 3/4 * x^7 < 1e-3 a turn
        x = 1 - 0.75 * (1 - x**8)
    return initial + (final - initial) * (1 - x ** (8 * progress)) / (1 - x**8)


@method(stage="during", paper="arXiv:1808.07471")
def asymptotic_soft_filter(
    amount: float = 0.3,
    *,
    every: int = 100,
    criterion: Any = "l2",
    scope: Any = "uniform",
    granularity: Any = "channel",
) -> Method:
    r"""Soft filter pruning whose amount follows $a\,e^{-kt} + b$ up to the end.

    Args:
        amount: Fraction of the filters of each layer at the end.
        every: Steps between two looks; the paper's is an epoch.
        criterion: Which filters are weak.
        scope: Allocation over layers.
        granularity: "channel" goes with all that is coupled, "row" is one layer's filter.

    Example:
        >>> round(asymptotic_soft_filter(0.4).schedule.at(1 / 8), 4)
        0.3
    """
    made = soft_filter(
        amount, every=every, criterion=criterion, scope=scope, granularity=granularity
    )
    return replace(made, schedule=find(asymptotic, amount))
