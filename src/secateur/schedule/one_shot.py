"""One-shot: everything at once."""

from secateur.schedule.registry import schedule


@schedule("one-shot")
def one_shot(progress: float, initial: float, final: float) -> float:
    """The final amount from the first moment on."""
    return final
