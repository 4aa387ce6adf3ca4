"""APoZ: units whose output is zero most of the time (Network Trimming)."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="class", needs={"zero_fraction"}, paper="arXiv:1607.03250")
def apoz(stats: Stats) -> Tensor:
    r"""Score $S_u = 1 - \mathrm{APoZ}_u$, one minus the fraction of zeros that the next layers see.

    Tells units apart only after an activation that gives exact zeros, as ReLU.

    Args:
        stats: ``zero_fraction`` of shape ``(size,)``.

    Returns:
        Scores in [0, 1] of shape ``(size,)``, float32.

    Example:
        >>> apoz(Stats("conv1", zero_fraction=torch.tensor([0.75])))
        tensor([0.2500])
    """
    return 1 - stats.zero_fraction
