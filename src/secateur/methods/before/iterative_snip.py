"""Iterative SNIP: SNIP in rounds, each scoring what the rounds before have left."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2006.09081")
def iterative_snip(
    amount: float = 0.9, *, rounds: int = 10, linear: bool = False, granularity: Any = "element"
) -> Method:
    r"""Keep globally the largest $|g_j w_j|$, $g$ the gradient of the network pruned so far.

    The density after round k of n is $d^{k/n}$; what is gone stays gone. One round is SNIP.

    Args:
        amount: Fraction removed.
        rounds: n; each is one pass over the data given.
        linear: Let the amount removed grow linearly instead.
        granularity: What is kept or removed as one.

    Example:
        >>> iterative_snip(0.9).revive
        False
    """
    return Method(
        amount,
        criterion="saliency",
        scope="global",
        rounds=rounds,
        linear_rounds=linear,
        granularity=granularity,
    )
