"""Permutations of units: which order keeps most under N:M, and what it does to tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import MissingExtraError
from secateur.granularity.units import joined
from secateur.graph import Member, UnitClass

_BLOCK = 1 << 24  # numbers held at once while groups are compared with candidates


def places(c: UnitClass) -> list[tuple[Member, Tensor]] | None:
    """Where each unit lies along every member's axis: shape (units, positions of each).

    None where units have no fixed places of their own, so that they cannot change them.
    """
    found = []
    for m in joined(c):
        where = (m.unit >= 0).nonzero().squeeze(1)
        count = m.unit[where].bincount(minlength=c.size)
        if bool((count != count[0]).any()):
            return None
        order = m.unit[where].argsort(stable=True)
        found.append((m, where[order].view(c.size, -1)))
    axes = {(m.tensor, m.axis) for m, _ in found}
    return found if len(axes) == len(found) else None


def reordered(tensor: Tensor, axis: int, place: Tensor, order: Tensor) -> Tensor:
    """The tensor with unit ``order[i]`` where unit i was.

    Example:
        >>> place = torch.tensor([[0, 2], [1, 3]])  # two units, twice along the axis
        >>> reordered(torch.arange(4), 0, place, torch.tensor([1, 0]))
        tensor([1, 0, 3, 2])
    """
    index = torch.arange(tensor.shape[axis])
    index[place.flatten()] = place[order].flatten()
    return tensor.index_select(axis, index.to(tensor.device))


def rows_along(scores: Tensor, axis: int, place: Tensor, m: int) -> Tensor | None:
    """Scores of a weight that takes the units in, as rows over the units: ``(rows, units)``.

    None where groups of m consecutive positions are not groups of m consecutive units, so that
    no order of the units changes what goes.
    """
    units = len(place)
    runs = place.T.contiguous()
    first = runs[:, :1]
    aligned = bool((first % m == 0).all()) and units % m == 0
    if not aligned or not torch.equal(runs, first + torch.arange(units)):
        return None
    return scores.float().movedim(axis, -1)[..., runs.flatten()].reshape(-1, units)


def kept(scores: Tensor, n: int, m: int) -> float:
    """The sum of what stays of ``(rows, units)`` when of every m units n go from each row.

    Example:
        >>> kept(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 1, 2), kept(torch.ones(2, 4), 3, 4)
        (6.0, 2.0)
    """
    groups = scores.reshape(len(scores), -1, m)
    return float(groups.topk(m - n, dim=-1).values.double().sum())


def best_order(scores: Tensor, n: int, m: int, *, patience: int = 8, seed: int = 0) -> Tensor:
    r"""An order of the units that keeps much under N:M, found by assignments.

    From every group one unit is taken out, and all of these are put back at once where they keep
    most together (RIA's second step): with $t_{rg}$ the least of what
    the rest of group g keeps in row r, unit j adds $\sum_r \max(0, S_{rj} - t_{rg})$ there, and a
    linear assignment chooses. No step makes it worse; it ends when ``patience`` sweeps over the m
    places of the groups, each in another order, have not made it better.

    Args:
        scores: ``(rows, units)``, not negative, higher = keep.
        n, m: Of every m units n go.
        patience: Sweeps without gain before it ends.
        seed: Of the order inside groups.

    Returns:
        int64 ``(units,)``: which unit comes where.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> scores = torch.tensor([[4.0, 3.0, 0.0, 0.0]])
        >>> kept(scores[:, best_order(scores, 1, 2)], 1, 2)
        7.0
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError(
            "permutations are assigned by scipy: pip install 'secateur[search]'"
        ) from error
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(scores.shape[1]).view(-1, m)
    best, idle = kept(scores, n, m), 0
    while idle < patience and len(groups) > 1:
        shuffle = torch.rand(groups.shape, generator=generator).argsort(1)
        groups = groups.gather(1, shuffle)
        for slot in range(m):
            gains = _gains(scores, groups, slot, m - n)
            _, to = linear_sum_assignment(gains.numpy(), maximize=True)
            groups[:, slot] = groups[torch.from_numpy(to), slot]
        now = kept(scores[:, groups.flatten()], n, m)
        idle = 0 if now > best * (1 + 1e-7) else idle + 1
        best = max(now, best)
    return groups.sort(1).values.flatten()


def _gains(scores: Tensor, groups: Tensor, slot: int, stay: int) -> Tensor:
    """What each unit at ``slot`` would add to each group without its own: (groups, units)."""
    others = torch.cat([groups[:, :slot], groups[:, slot + 1 :]], 1)
    total = torch.zeros(len(groups), len(groups), dtype=torch.double)
    for rows in scores.split(max(1, _BLOCK // len(groups) ** 2)):
        least = rows[:, others].topk(stay, dim=-1).values[..., -1]
        added = rows[:, groups[:, slot]].unsqueeze(1) - least.unsqueeze(2)
        total += added.clamp_(min=0).sum(0).double().cpu()
    return total
