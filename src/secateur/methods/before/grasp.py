"""GraSP: keep the connections that the flow of gradients needs, before any training."""

from typing import Any

from secateur.methods.registry import Method, method


@method(stage="before", paper="arXiv:2002.07376")
def grasp(
    amount: float = 0.9, *, temperature: float = 200.0, granularity: Any = "element"
) -> Method:
    r"""Remove globally the weights of largest $-\theta_j (Hg)_j$, on the data given.

    The sign counts: what goes is what shrinks the gradient's norm least, or lets it grow. The
    network is scored as it is; the authors' code initialises its linear layers anew for that.

    Args:
        amount: Fraction removed.
        temperature: What the outputs are divided by while scoring.
        granularity: What is kept or removed as one.

    Example:
        >>> grasp(0.9).criterion
        ('grasp', {'temperature': 200.0})
    """
    return Method(
        amount,
        criterion=("grasp", {"temperature": temperature}),
        scope="global",
        granularity=granularity,
    )
