"""FORCE: SNIP in rounds in which a connection that is gone may come back."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2006.09081")
def force(
    amount: float = 0.9, *, rounds: int = 10, linear: bool = False, granularity: Any = "element"
) -> Method:
    r"""Keep globally the largest $|w_j\, g_j|$, $w$ dense, $g$ the gradient at the masked weights.

    All weights compete in every round. The density after round k of n is $d^{k/n}$. One round is
    SNIP.

    Args:
        amount: Fraction removed.
        rounds: n; each is one pass over the data given.
        linear: Let the amount removed grow linearly instead.
        granularity: What is kept or removed as one.

    Example:
        >>> force(0.9).revive
        True
    """
    return Method(
        amount,
        criterion="saliency",
        scope="global",
        rounds=rounds,
        linear_rounds=linear,
        revive=True,
        granularity=granularity,
    )
