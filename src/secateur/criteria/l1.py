"""L1: the sum of absolute weights of everything that goes with a unit."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(
    elementwise=True,
    paper="arXiv:1608.08710",
    reduction="mean",
    normalizer="mean",
    aliases=("l1_norm",),
)
def l1(weight: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_i = |w_i|$; a unit's score is the sum, its L1 norm.

    Args:
        weight: Any shape, any floating dtype.
        stats: Not used.

    Returns:
        Scores of the weight's shape, float32.

    Example:
        >>> l1(torch.tensor([3.0, -4.0]))
        tensor([3., 4.])
    """
    return weight.float().abs()
