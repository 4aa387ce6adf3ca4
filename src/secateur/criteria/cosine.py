"""Cosine redundancy: a filter that points where a stronger one does can go."""

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="filter", paper="arXiv:1802.07653", reduction="mean", aliases=("redundancy",))
def cosine(filters: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_i = 1 - \max_{j \succ i} |\cos(F_i, F_j)|$ over the filters $j$ stronger than $i$.

    $j \succ i$ if $j$ has the larger norm (ties: comes first), so that of a group of copies one
    stays. A filter of zeros scores 0.

    Args:
        filters: One filter a row, ``(units, elements)``.
        stats: Not used.

    Returns:
        Scores in [0, 1] of shape ``(units,)``, float32.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
        tensor([0., 1., 1.])
    """
    f = filters.float()
    norms = f.norm(dim=1)
    order = norms.argsort(descending=True, stable=True)
    unit = F.normalize(f[order], dim=1)
    alike = (unit @ unit.T).abs().tril(-1)  # each row against the stronger ones before it
    scores = torch.empty_like(norms)
    scores[order] = (1 - alike.amax(1)).clamp(0, 1)
    return torch.where(norms > 0, scores, torch.zeros_like(scores))
