"""Lp: the p-th power of the p-norm of everything that goes with a unit."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats
from secateur.errors import ConfigError


@criterion(elementwise=True, paper="arXiv:1608.08710", reduction="mean", normalizer="mean")
def lp(weight: Tensor, stats: Stats | None = None, *, p: float = 2.0) -> Tensor:
    r"""Score $S_i = |w_i|^p$; a unit's score is the sum, $\lVert w \rVert_p^p$.

    Args:
        weight: Any shape, any floating dtype.
        stats: Not used.
        p: A positive number; large values look at the largest weight only.

    Returns:
        Scores of the weight's shape, float32.

    Raises:
        ConfigError: ``p`` is not positive.

    Example:
        >>> lp(torch.tensor([-2.0]), p=3)
        tensor([8.])
    """
    if not p > 0:
        raise ConfigError(f"criterion lp: p={p} must be positive")
    return weight.float().abs() ** p
