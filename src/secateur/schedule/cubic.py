"""Cubic: fast while there is much to spare, slow towards the end (arXiv:1710.01878)."""

from secateur.schedule.registry import schedule


@schedule("cubic")
def cubic(progress: float, initial: float, final: float) -> float:
    r"""$s(t) = s_f + (s_i - s_f)(1 - t)^3$."""
    return final + (initial - final) * (1 - progress) ** 3
