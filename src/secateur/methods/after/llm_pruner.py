"""LLM-Pruner: coupled structures by how much the loss would change without their weights."""

from __future__ import annotations

from secateur.errors import ConfigError
from secateur.methods.registry import Method, method

_CRITERIA = {
    ("first", False): "saliency",
    ("second", False): "fisher",
    ("mixed", False): "taylor2",
    ("first", True): "taylor_vector",
}


@method(stage="after", paper="arXiv:2305.11627")
def llm_pruner(amount: float = 0.2, *, order: str = "first", vector: bool = False) -> Method:
    """The same fraction of heads and of hidden neurons goes in every layer.

    The paper leaves the first four and the last two or more blocks alone: say so with ``ignore=``.
    How coupled matrices become one score is ``reduction=`` (sum, mean, max, prod, first).

    Args:
        amount: Fraction of the units removed.
        order: ``first``: $|g w|$; ``second``: $w^2 F$, F the diagonal of the empirical Fisher
            matrix; ``mixed``: $|g w - \\tfrac12 w^2 F|$.
        vector: Sum $g w$ over each row or column before its size is taken; first order only.

    Raises:
        ConfigError: There is no such order.

    Example:
        >>> llm_pruner(0.2, order="mixed").criterion
        'taylor2'
    """
    if (order, vector) not in _CRITERIA:
        raise ConfigError(f"order={order!r}, vector={vector}: first, second, mixed; vector: first")
    return Method(
        amount,
        criterion=_CRITERIA[order, vector],
        granularity="channel",
        kinds=("head", "channel"),
    )
