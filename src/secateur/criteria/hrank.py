"""HRank: feature maps of high rank carry more information."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="class", needs={"rank"}, paper="arXiv:2002.10179")
def hrank(stats: Stats) -> Tensor:
    r"""Score $S_c = E[\operatorname{rank}(X_c)]$ of the maps $X_c$, height by width, of a channel.

    Classes without maps of at least 2 by 2 have no rank and are left whole. A few batches are
    enough.

    Args:
        stats: ``rank`` of shape ``(size,)``.

    Returns:
        Scores of shape ``(size,)``, float32.

    Example:
        >>> hrank(Stats("conv1", rank=torch.tensor([3.5])))
        tensor([3.5000])
    """
    return stats.rank
