"""Solve some layers whose statistics are known; several processes take rows or layers of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.finished import Row, Solution
from secateur.engine.gram import aimed, layer_error
from secateur.engine.parallel import agreed, exchange, place, share
from secateur.engine.products import Layer
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target
from secateur.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Rows of a layer that one process solves: all of them, if rows depend on each other."""

    layer: Layer
    stats: Stats
    target: Target
    rows: slice
    owner: int

    def of(self, weight: Tensor) -> Tensor:
        """The rows, as a view of the parameter or of a mask that is laid out like it."""
        return self.layer.of(weight)[self.rows]

    def solve(self, weight: Tensor, solver: Solver) -> tuple[Solved, float, list[float]]:
        """The solution, the seconds that it took, and squared errors: of the change, of all."""
        began = time.perf_counter()
        before = wanted(weight, self.layer, self.stats, self.rows)
        target = self.target
        if target.keep is not None:
            target = Target(keep=target.keep[self.rows])
        elif target.pattern is not None and before.shape[1] % target.pattern[1]:
            name = self.layer.parameter
            raise ConfigError(
                f"{self.layer.name}: {before.shape[1]} inputs cannot be split into groups of "
                f"{target.pattern[1]}: leave it out with ignore=[{name!r}], or choose another "
                "pattern"
            )
        solved = solver(before, self.stats, target)
        after = solved.weight.to(weight.dtype)
        seconds = time.perf_counter() - began
        errors = lost(after, before, self.stats)
        return Solved(after, solved.keep, solved.note), seconds, errors


def wanted(weight: Tensor, layer: Layer, stats: Stats, rows: slice = slice(None)) -> Tensor:
    """Rows of the matrix that a layer should compute: the dense one unless there is an aim."""
    dense = layer.of(weight)[rows]
    if "aim" in stats:
        return stats.aim[rows]
    return aimed(dense, stats) if "cross" in stats else dense


def lost(after: Tensor, before: Tensor, stats: Stats) -> list[float]:
    """Squared errors of a layer's output, of the change and of all; nothing without a Gram."""
    if "gram" not in stats:
        return []
    return [layer_error(w, stats.gram) for w in (after - before, before)]


def relative(errors: Sequence[Sequence[float]]) -> float | None:
    """The error of a layer, of those of its parts as ``lost`` gives them."""
    change, whole = (sum(e[i] for e in errors if e) for i in (0, 1))
    return None if not any(errors) else change / whole if whole > 0 else 0.0


def split(
    layers: Sequence[tuple[Layer, Stats]], solver: Solver, target: Callable[[Layer], Target]
) -> list[Part]:
    """Who solves what: rows are spread over all processes, or the layer goes to the least busy."""
    _, count = place()
    busy = [0] * count
    parts = []
    for layer, stats in layers:
        wanted, (rows, columns) = target(layer), layer.shape
        if count > 1 and wanted.kind in solver.rowwise:
            ends = [rows * i // count for i in range(count + 1)]
            parts += [
                Part(layer, stats, wanted, slice(ends[i], ends[i + 1]), i) for i in range(count)
            ]
        else:
            owner = busy.index(min(busy))
            busy[owner] += rows * columns**2
            parts.append(Part(layer, stats, wanted, slice(0, rows), owner))
    return [part for part in parts if part.rows.start < part.rows.stop]


@torch.no_grad()
def solve_layers(
    layers: Sequence[tuple[Layer, Stats]],
    weights: Mapping[str, Tensor],
    solver: Solver,
    target: Callable[[Layer], Target],
    block: str,
    keep: dict[str, Tensor],
    done: Solution,
) -> None:
    """Solve layers in place and add what was done; all processes have the same afterwards.

    Args:
        layers: With the statistics of their inputs, which are the same in all processes.
        weights: Parameters by name.
        solver, target: The method, and what each layer is asked for.
        block: Name of the block.
        keep: Masks by parameter, True = stays; added to.
        done: Rows and notes are added to it.
    """
    rank, count = place()
    if count == 1:  # one after another, so that one solution at a time is in memory
        for layer in layers:
            _solve(split([layer], solver, target), weights, solver, block, keep, done, rank)
    else:
        _solve(split(layers, solver, target), weights, solver, block, keep, done, rank)


def _solve(
    parts: Sequence[Part],
    weights: Mapping[str, Tensor],
    solver: Solver,
    block: str,
    keep: dict[str, Tensor],
    done: Solution,
    rank: int,
) -> None:
    mine: dict[int, Solved] = {}
    said: dict[str, tuple[str, float, list[float]]] = {}
    with agreed():
        for number, part in enumerate(parts):
            if part.owner == rank:
                solved, *told = part.solve(weights[part.layer.parameter], solver)
                mine[number], said[str(number)] = solved, (solved.note, told[0], told[1])  # type: ignore[assignment]
    said = {number: told for each in exchange(said) for number, told in each.items()}
    rows: dict[str, list[tuple[Part, int, str, float, list[float]]]] = {}
    for number, part in enumerate(parts):
        parameter = weights[part.layer.parameter]
        if part.layer.parameter not in keep:
            keep[part.layer.parameter] = torch.ones_like(parameter, dtype=torch.bool)
        there, stays = part.of(parameter), part.of(keep[part.layer.parameter])
        found = mine.pop(number, None) or Solved(torch.empty_like(there), torch.empty_like(stays))
        there.copy_(share(found.weight, part.owner))
        stays.copy_(share(found.keep, part.owner))
        removed = int((~stays).sum())
        rows.setdefault(part.layer.name, []).append((part, removed, *said[str(number)]))
    for name, of_layer in rows.items():
        part = of_layer[0][0]
        note = next((note for _, _, note, _, _ in of_layer if note), "")
        if note:
            done.notes.append(note)
            log.warning("%s", note)
        done.rows.append(
            Row(
                name,
                block,
                sum(removed for _, removed, *_ in of_layer),
                part.layer.shape[0] * part.layer.shape[1],
                part.stats.tokens,
                relative([errors for *_, errors in of_layer]),
                sum(seconds for *_, seconds, _ in of_layer),
                note,
            )
        )
