"""Which rows and columns of a dense weight the pruned weight still holds."""

from typing import Any

import torch
from torch import Tensor


def kept_indices(
    dense: Tensor, pruned: Tensor, plan: Any = None, name: str = ""
) -> tuple[Tensor, Tensor] | None:
    """Rows and columns such that ``dense[rows][:, columns]`` is where ``pruned`` came from.

    Taken from the plan where it was made for this weight; else found by looking up the values of
    the pruned weight in the dense one, and proven by comparing the slice. A weight that was trained
    since can only be placed by its plan.

    Args:
        dense: ``(out, in, ...)``.
        pruned: ``(fewer out, fewer in, ...)``.
        plan: what was removed, with ``masks(tensor name)``; optional.
        name: the weight's qualified name.

    Returns:
        Rows and columns, or ``None`` if they cannot be known.
    """
    masks = _from_plan(plan, name)
    if masks and all(
        mask.numel() == dense.shape[axis] and int(mask.sum()) == pruned.shape[axis]
        for axis, mask in enumerate(masks[:2])
    ):
        rows, columns = (mask.nonzero().flatten().to(dense.device) for mask in masks[:2])
        return rows, columns
    if dense.shape[2:] != pruned.shape[2:] or dense.dtype != pruned.dtype:
        return None
    dense, pruned = dense.detach(), pruned.detach().to(dense.device)
    found = _by_value(dense, pruned)
    if found is None or not torch.equal(dense[found[0]][:, found[1]], pruned):
        return None
    return found


def _from_plan(plan: Any, name: str) -> list[Tensor]:
    if plan is None or name not in getattr(plan, "axes", {}):
        return []
    return list(plan.masks(name))


def _by_value(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor] | None:
    """Look every value up among those unique in ``dense``; the place most agree on wins."""
    outs, ins = dense.shape[:2]
    kernel = dense[0, 0].numel()
    values, order = dense.flatten().sort()
    once = torch.ones_like(values, dtype=torch.bool)
    same = values[1:] == values[:-1]
    once[1:] &= ~same
    once[:-1] &= ~same
    place = torch.searchsorted(values, pruned.contiguous().flatten()).clamp(max=len(values) - 1)
    found = (values[place] == pruned.flatten()) & once[place]
    origin = torch.where(found, order[place], -1)
    row = torch.where(found, origin // (ins * kernel), -1).reshape(pruned.shape)
    column = torch.where(found, origin // kernel % ins, -1).reshape(pruned.shape)
    rows = _most_frequent(row.flatten(1), outs)
    columns = _most_frequent(column.transpose(0, 1).flatten(1), ins)
    return None if rows is None or columns is None else (rows, columns)


def _most_frequent(votes: Tensor, size: int) -> Tensor | None:
    """The value in [0, size) with most votes of each line; ``None`` if a line has none."""
    if votes.shape[0] == size:
        return torch.arange(size, device=votes.device)
    counts = torch.zeros(votes.shape[0], size + 1, dtype=torch.int32, device=votes.device)
    counts.scatter_add_(1, votes + 1, torch.ones_like(votes, dtype=torch.int32))
    best = counts[:, 1:].max(1)
    return best.indices if bool((best.values > 0).all()) else None
