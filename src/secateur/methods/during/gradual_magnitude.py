"""Gradual magnitude pruning: small weights go little by little while the network trains."""

from typing import Any

from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@method(stage="during", paper="arXiv:1710.01878")
def gradual_magnitude(
    amount: float = 0.9,
    *,
    every: int = 1,
    start: float = 0.0,
    end: float = 1.0,
    scope: Any = "uniform",
    granularity: Any = "element",
) -> Method:
    r"""The amount follows $s(t) = s_f (1 - (1 - t)^3)$; what has gone stays gone.

    Args:
        amount: $s_f$, fraction removed at the end.
        every: Steps between two looks.
        start, end: Part of training in which it happens, as fractions of its steps.
        scope: Allocation over layers; the paper's is uniform.
        granularity: What goes as one.

    Example:
        >>> round(gradual_magnitude(0.9).schedule.at(0.5), 4)
        0.7875
    """
    schedule = find("cubic", amount, start=start, end=end)
    return Method(amount, scope=scope, granularity=granularity, schedule=schedule, every=every)
