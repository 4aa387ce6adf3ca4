"""Random: the baseline that every other criterion has to beat."""

from zlib import crc32

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="class", paper="arXiv:1801.10447")
def random(stats: Stats, *, seed: int = 0) -> Tensor:
    r"""Score $S_u \sim U(0, 1)$, one draw a unit, whatever the other classes are.

    Args:
        stats: Its ``name`` and ``size`` are read.
        seed: The same seed gives the same scores on every machine.

    Returns:
        Scores of shape ``(size,)``, float32.

    Example:
        >>> random(Stats("conv1", size=2)).shape
        torch.Size([2])
    """
    # The generator reads 32 bits of its seed: both the seed and the name have to be in them.
    generator = torch.Generator().manual_seed(crc32(f"{seed} {stats.name}".encode()))
    return torch.rand(stats.size, generator=generator)
