"""SynFlow: prune in many rounds by the flow through the absolute weights; needs no data."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2006.05467")
def synflow(
    amount: float = 0.9, *, rounds: int = 100, linear: bool = False, granularity: Any = "element"
) -> Method:
    r"""Remove globally what carries least of the flow $R$, a little in each round.

    The density after round k is $d^{k/n}$. In one round a whole layer can go; scored anew in every
    round, a thin layer's connections carry more of the flow each, and it stays.

    Args:
        amount: Fraction removed.
        rounds: n.
        linear: Let the amount removed grow linearly instead.
        granularity: What is kept or removed as one.

    Example:
        >>> synflow(0.9).rounds
        100
    """
    return Method(
        amount,
        criterion="synflow",
        scope="global",
        rounds=rounds,
        linear_rounds=linear,
        granularity=granularity,
    )
