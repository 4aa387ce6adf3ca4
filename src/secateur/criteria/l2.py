"""L2: the squared norm of everything that goes with a unit."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(
    elementwise=True,
    paper="arXiv:1506.02626",
    reduction="mean",
    normalizer="mean",
    aliases=("magnitude", "l2_norm"),
)
def l2(weight: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_i = w_i^2$; a unit's score is the sum, its squared L2 norm.

    The root is not taken: it would not change the order of the units.

    Args:
        weight: Any shape, any floating dtype.
        stats: Not used.

    Returns:
        Scores of the weight's shape, float32.

    Example:
        >>> l2(torch.tensor([3.0, -4.0]))
        tensor([ 9., 16.])
    """
    return weight.float().square()
