"""Linear: the same number of units at every step."""

from secateur.schedule.registry import schedule


@schedule("linear")
def linear(progress: float, initial: float, final: float) -> float:
    r"""$s(t) = s_i + (s_f - s_i)\, t$."""
    return initial + (final - initial) * progress
