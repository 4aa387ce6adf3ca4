"""FPGM: filters near the geometric median of their layer can be replaced by the others."""

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="filter", paper="arXiv:1811.00250", reduction="mean", normalizer="mean")
def fpgm(filters: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_i = \sum_j \lVert F_i - F_j \rVert_2$ over the filters of a layer.

    Args:
        filters: One filter a row, ``(units, elements)``.
        stats: Not used.

    Returns:
        Scores of shape ``(units,)``, float32; equal if all filters are moved together.

    Example:
        >>> fpgm(torch.tensor([[0.0], [1.0], [3.0]]))
        tensor([4., 3., 5.])
    """
    f = filters.float()
    # The shortcut by products loses the small distances that matter here.
    return torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
