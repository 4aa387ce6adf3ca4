"""L1: weights are pulled to zero by the same force whatever their size, and small ones go."""

from secateur.errors import ConfigError
from secateur.methods.during.ssl import GroupLasso
from secateur.methods.registry import Method, method


@method(stage="during", paper="arXiv:1506.02626")
def l1(amount: float | None = None, *, strength: float = 1e-4, proximal: bool = True) -> Method:
    r"""Train with $\lambda \lVert w \rVert_1$; at the end the smallest weights of all layers go.

    Args:
        amount: Fraction removed at the end; None leaves exactly what the penalty has not made
            zero.
        strength: $\lambda$.
        proximal: Soft thresholding after each step, by the learning rate times $\lambda$, or a
            subgradient, which comes near zero but never stays there.

    Raises:
        ConfigError: A subgradient without an amount, a negative strength.

    Example:
        >>> l1(0.9).penalty.strength
        0.0001
    """
    if amount is None and not proximal:
        raise ConfigError("a subgradient makes no weight exactly zero: give amount=")
    penalty = GroupLasso(strength, ("element",), proximal)
    return Method(amount, scope="global", soft=True, penalty=penalty)
