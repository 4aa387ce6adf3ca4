"""What ``sec.sparsify`` does where no method is named; docs/llm.md compares it with SparseGPT."""

from __future__ import annotations

from typing import Any

ALONE = ("admm", {"iterations": 10, "damping": 0.3})
TUNED = ("admm", {"iterations": 3, "damping": 0.3})  # tuning makes up for iterations


def recipe(method: Any, tune: int | None, even: bool) -> tuple[Any, int]:
    """The method and the passes of tuning; of the project where the user names no method.

    Args:
        method: What the user said, or None.
        tune: The same.
        even: All layers lose the same: by a pattern, or masks.

    Example:
        >>> recipe(None, None, even=True)
        (('admm', {'iterations': 3, 'damping': 0.3}), 1)
        >>> recipe("wanda", None, even=True)
        ('wanda', 0)
    """
    if tune is None:
        tune = int(method is None and even)
    if method is None:
        method = TUNED if even and tune else ALONE
    return method, tune
