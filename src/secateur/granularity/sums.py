"""Sums of the scores of elements: over all axes but one, and over the positions of each unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.criteria import Criterion
from secateur.engine.statistics import Stats

_BLOCK = 1 << 17  # elements whose scores stay in a processor's cache until they are summed


def axis_sums(
    criterion: Criterion, weight: Tensor, stats: Stats, axes: Sequence[int]
) -> dict[int, Tensor]:
    """The scores of a tensor's elements, summed over all axes but one, for each of these."""
    blocks: Sequence[Tensor] = (weight,)
    if criterion.elementwise and weight.numel() > _BLOCK:
        blocks = weight.split(max(1, _BLOCK * len(weight) // weight.numel()))
    parts: dict[int, list[Tensor]] = {axis: [] for axis in axes}
    for block in blocks if axes else ():
        scores = criterion(block, stats)
        for axis, found in parts.items():
            others = [d for d in range(scores.dim()) if d != axis]
            found.append(scores.sum(others) if others else scores)
    return {
        axis: torch.cat(found) if axis == 0 else torch.stack(found).sum(0)
        for axis, found in parts.items()
    }


def unit_sum(values: Tensor, unit: Tensor, size: int) -> Tensor:
    """Sum of the values at each unit's positions.

    Args:
        values: One value a position of an axis.
        unit: The unit of each position, -1 for none; same length.
        size: Number of units.

    Example:
        >>> unit_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), 2)
        tensor([5., 2.])
    """
    return unit_sums(values, [unit], [size])[0]


def unit_sums(values: Tensor, units: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
    """``unit_sum`` for several classes along one axis, in one go."""
    unit = torch.stack(list(units)).to(values.device)
    size = torch.tensor(sizes, device=values.device)[:, None]
    first = size.cumsum(0) - size
    place = torch.where(unit < 0, sum(sizes), unit + first)  # what belongs to no unit goes last
    total = torch.zeros(sum(sizes) + 1, dtype=values.dtype, device=values.device)
    total.index_add_(0, place.flatten(), values.expand(unit.shape).flatten())
    return total[:-1].split(list(sizes))
