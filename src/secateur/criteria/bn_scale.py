"""Batch-norm scale: the factor with which a channel leaves its normalisation (Network Slimming)."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="norm", paper="arXiv:1708.06519", reduction="mean", aliases=("slimming", "bn"))
def bn_scale(scale: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_c = |\gamma_c|$; meaningful after training with an L1 penalty on $\gamma$.

    Args:
        scale: $\gamma$ of a batch norm, shape ``(channels,)``.
        stats: Not used.

    Returns:
        Scores of shape ``(channels,)``, float32.

    Example:
        >>> bn_scale(torch.tensor([-2.0, 0.5]))
        tensor([2.0000, 0.5000])
    """
    return scale.float().abs()
