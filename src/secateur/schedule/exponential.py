"""Exponential: the same fraction of what is left at every step."""

from secateur.schedule.registry import schedule


@schedule("exponential")
def exponential(progress: float, initial: float, final: float) -> float:
    r"""$1 - s(t) = (1 - s_i) \left(\frac{1 - s_f}{1 - s_i}\right)^t$."""
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** progress
