"""The error barrier between two networks along the line that joins them, and instability."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur import recovery as recoveries
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, PlanError
from secateur.measure.calling import evaluating
from secateur.recovery import BNRecalibrate

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Barrier:
    r"""The metric on the line $(1 - \alpha) W_1 + \alpha W_2$.

    Attributes:
        points: ($\alpha$, metric) from $\alpha = 0$ to 1; higher is better.
    """

    points: tuple[tuple[float, float], ...]

    @property
    def height(self) -> float:
        r"""How far the metric falls below the straight line between its ends, at most.

        Zero or less: the two are linearly connected. With equal ends it is the papers'
        $\sup_\alpha E(\alpha) - \tfrac12 (E(0) + E(1))$.

        Example:
            >>> Barrier(((0.0, 0.9), (0.5, 0.4), (1.0, 0.8))).height
            0.45
        """
        first, last = self.points[0][1], self.points[-1][1]
        return round(max((1 - a) * first + a * last - s for a, s in self.points), 12)

    def __repr__(self) -> str:
        return f"Barrier(height {self.height:.4g} between {self.points[0][1]:.4g} and " + (
            f"{self.points[-1][1]:.4g})"
        )


def barrier(
    first: nn.Module,
    second: nn.Module,
    evaluate: Evaluate,
    *,
    points: int = 11,
    data: Iterable[Any] | None = None,
) -> Barrier:
    r"""Evaluate networks between two of the same shape, whose weights are mixed one by one.

    Args:
        first, second: Two networks of one architecture; they stay as they are.
        evaluate: Model -> number, higher is better; called in evaluation mode without gradients.
        points: How many along the line, ends included.
        data: Batches to recompute the statistics of batch norms on, between the ends; without, the
            running statistics are mixed too.

    Raises:
        ConfigError: Fewer than three points.
        PlanError: The networks have not the same tensors.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> barrier(net, net, lambda m: -m(torch.ones(1, 2)).square().item()).height
        0.0

    Paper: Frankle et al., arXiv:1912.05671.
    """
    if points < 3:
        raise ConfigError(f"points={points}: give at least 3, the ends and one between them")
    a, b = first.state_dict(), second.state_dict()
    for name in [*a, *b]:
        if name not in a or name not in b or a[name].shape != b[name].shape:
            raise PlanError(f"{name} is not the same kind of tensor in both networks")
    work = copy.deepcopy(first)
    recompute = data is not None and any(isinstance(m, _BatchNorm) for m in work.modules())
    found = []
    for k in range(points):
        alpha = k / (points - 1)
        mixed = {
            n: torch.lerp(t, b[n].to(t.device), alpha) if t.is_floating_point() and alpha > 0 else t
            for n, t in a.items()
        }
        work.load_state_dict(b if k == points - 1 else mixed)
        if recompute and 0 < k < points - 1:
            BNRecalibrate().heal(work, data=data)
        with evaluating(work):
            found.append((alpha, float(evaluate(work))))
    return Barrier(tuple(found))


def instability(
    model: nn.Module,
    recovery: Any,
    evaluate: Evaluate,
    *,
    data: Iterable[Any],
    masks: MaskSet | None = None,
    seeds: tuple[int, int] = (1, 2),
    points: int = 11,
) -> Barrier:
    """Train two copies that differ in the order of the data alone; the barrier between them.

    A network (or a ticket, with ``masks``) whose copies end linearly connected is stable: what the
    optimizer's noise decides does not matter any more. Where this begins is the step to rewind to.

    Args:
        model: At the step in question, as ``FineTune(stop=k)`` leaves it; it stays as it is.
        recovery: What trains it, with a seed: ``FineTune(start=k)``, ``Rewind``, ``Distil``, ...
        evaluate: Model -> number, higher is better.
        data: Batches, shuffled by their loader.
        masks: Held throughout.
        seeds: Of the two runs.
        points: How many along the line.

    Raises:
        ConfigError: A recovery that has no seed.

    Example:
        >>> data = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))]
        >>> how = ("fine-tune", {"progress": False})
        >>> instability(nn.Linear(2, 2), how, lambda m: 1.0, data=data).height
        0.0

    Paper: Frankle et al., arXiv:1912.05671.
    """
    if isinstance(recovery, tuple | list) and len(recovery) == 2:
        how = recoveries.recovery(recovery[0], **recovery[1])
    else:
        how = recoveries.recovery(recovery)
    copies = []
    for seed in seeds:
        made = copy.deepcopy(model)
        _seeded(how, seed).heal(made, masks, data, model)
        copies.append(made)
    return barrier(copies[0], copies[1], evaluate, points=points, data=data)


def _seeded(how: Any, seed: int) -> Any:
    """The recovery with another order of the data; what else is drawn stays."""
    names = {f.name for f in fields(how)} if is_dataclass(how) else set()
    if "base" in names:
        return replace(how, base=_seeded(how.base, seed))
    if "seed" not in names:
        raise ConfigError(
            f"recovery={how!r} has no seed= of a data order: give one that trains, as fine-tune"
        )
    return replace(how, seed=seed)
