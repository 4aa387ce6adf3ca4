"""Mean activation: units that are hardly ever active."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(
    level="class",
    needs={"activation"},
    paper="arXiv:1611.06440",
    normalizer="mean",
    aliases=("mean_activation",),
)
def activation(stats: Stats) -> Tensor:
    r"""Score $S_u = E[|a_u|]$ of what the next layers see of the unit.

    Args:
        stats: ``activation`` of shape ``(size,)``.

    Returns:
        Scores of shape ``(size,)``, float32.

    Example:
        >>> activation(Stats("conv1", activation=torch.tensor([0.5])))
        tensor([0.5000])
    """
    return stats.activation
