"""The order in which units go, given their scores, the pools they compete in and the limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.graph import UnitClass

# Kinds whose units are blocks of positions (a head is head_dim rows): what hardware wants as a
# multiple is the number of positions.
_BLOCKS = {"head", "kv_head", "query", "group", "expert"}


@dataclass(frozen=True)
class Limits:
    """How far a class may shrink.

    Attributes:
        max_ratio: Largest fraction of a class that may go.
        min_width: Fewest units that stay; at least one always does.
        round_to: The number of positions kept is a multiple of this; a class with fewer stays
            whole.
    """

    max_ratio: float = 1.0
    min_width: int = 1
    round_to: int = 1

    def step(self, c: UnitClass) -> int:
        """Kept counts of this class are multiples of this number (or the class stays whole)."""
        if c.kind not in _BLOCKS:
            return self.round_to
        each = min((int((m.unit == 0).sum()) for m in c.members), default=1)
        return self.round_to // math.gcd(self.round_to, max(each, 1))

    def widths(self, c: UnitClass) -> list[int]:
        """The numbers of units that may stay, from all of them down."""
        fewest = max(self.min_width, 1, math.ceil(c.size * (1 - self.max_ratio) - 1e-9))
        step = self.step(c)
        largest = (c.size - 1) // step * step
        return [c.size, *range(largest, max(fewest, step) - 1, -step)]


@dataclass(frozen=True)
class Order:
    """Bundles of units in the order in which they go.

    Attributes:
        classes: Names of the classes; bundles refer to them by position.
        rank: Class name -> for every unit how many units of its class go before it; shaped as the
            scores.
        which: Class of every bundle.
        units: Number of units of every bundle.
        at: The pool's fraction removed at which each bundle goes: half-way through it, so that
            ``at < amount`` removes the nearest number; non-decreasing.
    """

    classes: tuple[str, ...]
    rank: Mapping[str, Tensor]
    which: Tensor
    units: Tensor
    at: Tensor

    def removed(self, chosen: Tensor) -> dict[str, int]:
        """Number of units of each class in the chosen bundles (bool, one a bundle)."""
        count = torch.bincount(
            self.which[chosen],
            weights=self.units[chosen].double(),
            minlength=len(self.classes),
        )
        return {n: int(k) for n, k in zip(self.classes, count.tolist(), strict=True)}

    def masks(self, removed: Mapping[str, int]) -> dict[str, Tensor]:
        """Which units stay when so many of each class go."""
        return {n: self.rank[n] >= k for n, k in removed.items()}


def order(
    pools: Sequence[Sequence[UnitClass]], scores: Mapping[str, Tensor], limits: Limits
) -> Order:
    """Sort all that may go: lowest score first in each pool, pools side by side.

    A bundle is the fewest units of a class that may go together (one, unless ``round_to``); its
    score is their mean, and never lower than that of the bundle before it. Ties go by order of
    classes, then of units, so the result is the same on every machine.

    Args:
        pools: Classes that compete.
        scores: Class name -> scores of shape (size,), or (units of ``over``, size).
        limits: How far each may shrink.
    """
    names: list[str] = []
    rank: dict[str, Tensor] = {}
    which, units, at = [], [], []
    for pool in pools:
        total = sum(c.size for c in pool)
        pool_which, pool_units, pool_scores = [], [], []
        for c in pool:
            by_score = scores[c.name].argsort(stable=True)
            rank[c.name] = by_score.argsort()
            # Of a class chosen anew for every unit of another, what goes in each goes together.
            ascending = scores[c.name].double().gather(-1, by_score).reshape(-1, c.size).mean(0)
            widths = torch.tensor(limits.widths(c))
            count = widths[:-1] - widths[1:]
            ends = c.size - widths[1:]
            cumulative = torch.cat([ascending.new_zeros(1), ascending.cumsum(0)])
            mean = (cumulative[ends] - cumulative[ends - count]) / count
            pool_which.append(torch.full((len(count),), len(names)))
            pool_units.append(count)
            pool_scores.append(mean.cummax(0).values if len(mean) else mean)
            names.append(c.name)
        if not pool:
            continue
        sorted_ = torch.cat(pool_scores).argsort(stable=True)
        n = torch.cat(pool_units)[sorted_]
        which.append(torch.cat(pool_which)[sorted_])
        units.append(n)
        at.append((n.cumsum(0).double() - n / 2) / total)
    empty = torch.zeros(0, dtype=torch.long)
    whole = torch.cat(at) if at else empty.double()
    merged = whole.argsort(stable=True)
    return Order(
        classes=tuple(names),
        rank=rank,
        which=(torch.cat(which) if which else empty)[merged],
        units=(torch.cat(units) if units else empty)[merged],
        at=whole[merged],
    )
