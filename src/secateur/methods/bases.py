"""A basis of its own for each block: principal components, with norms that have no scale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.graph import Graph, UnitClass, trace
from secateur.graph.forward import call_arguments, tensors_in
from secateur.measure.calling import evaluating
from secateur.methods.components import components
from secateur.methods.depth import Depth
from secateur.methods.norms import fold, norms_of, readers_of
from secateur.plan.bases import SHORTCUT, rotate
from secateur.plan.gaps import Gap, drop

_MOST_CHANGE = {torch.float64: 1e-3, torch.float32: 1e-3}  # relative; coarser types 5e-2


@dataclass
class Bases:
    """A model in which every block has a basis of its own.

    Attributes:
        graph: Of the model; the residual stream of each block is a class of its own.
        classes: These, in the order of the blocks.
        gaps: The shortcuts, and modules that became others, as data.
        norms: Names of the modules that normalise each class.
        energy: By class the mean squares along its basis, falling, ``(width,)``.
    """

    graph: Graph
    classes: tuple[UnitClass, ...]
    gaps: tuple[Gap, ...]
    norms: dict[str, list[str]] = field(default_factory=dict)
    energy: dict[str, Tensor] = field(default_factory=dict)


def with_bases(
    depth: Depth, example_inputs: Any, left: Callable[[Bases], int] | None = None
) -> Bases:
    """Fold the norms, rotate each block to its principal components, mend by shortcuts.

    Args:
        depth: The model, which stays as it is, its chain of blocks, and batches.
        example_inputs: To trace by, and to show that the outputs stay.
        left: From the model before it is rotated to how many components shall stay, which the
            components of later blocks depend on; default: all.

    Raises:
        PlanError: The model cannot be rotated without changing: norms that write to the residual
            stream, or something else ties it to a basis.
    """
    width = depth.reaching(depth.batches[0])[0].shape[-1]
    gaps = tuple(Gap(name, shortcut=width) for name in depth.blocks[1:])
    made = drop(copy.deepcopy(depth.model), gaps)
    graph = trace(made, example_inputs)
    classes = _residual(graph, gaps, width)
    before = _outputs(made, example_inputs)
    of_norm = norms_of(made, classes)
    takes = readers_of(made, classes, of_norm, depth.batches[0])
    others = fold(made, classes, of_norm, takes)
    if others:
        graph = trace(made, example_inputs)
    here = Bases(graph, _residual(graph, gaps, width), (*gaps, *others))
    for old, c in zip(classes, here.classes, strict=True):
        here.norms[c.name] = [name for name, space in of_norm.items() if space == old.name]
    stay = width if left is None else left(here)
    turned = components(made, depth.blocks, here.norms, depth.batches, stay)
    for c in here.classes:
        here.energy[c.name], vectors = turned[c.name]
        for m in c.members:
            if m.tensor.rpartition(".")[0] not in of_norm:
                rotate(made, m.tensor, m.axis, vectors)
    after = _outputs(made, example_inputs)
    change = max(
        (
            float((a - b).norm() / a.norm().clamp_min(1e-12))
            for a, b in zip(before, after, strict=True)
        ),
        default=0.0,
    )
    if not change <= _MOST_CHANGE.get(next(made.parameters()).dtype, 5e-2):
        raise PlanError(
            f"rotating the residual stream of {type(depth.model).__name__} changes its outputs by "
            f"{change:.1e}: its norms are no plain layer or RMS norms, or come after what is added "
            "to it, or something else depends on the basis; use a method that removes heads and "
            "neurons"
        )
    return here


def _residual(graph: Graph, gaps: tuple[Gap, ...], width: int) -> tuple[UnitClass, ...]:
    """The class of the residual stream in each block."""
    found: list[UnitClass] = []
    for k, gap in enumerate(gaps):
        tensor = f"{gap.module}.{SHORTCUT}.weight"
        for axis in (1, 0) if k == 0 else (0,):
            places = [c for c in graph.free.values()
                      for m in c.members if (m.tensor, m.axis) == (tensor, axis)]  # fmt: skip
            found += places
    straight = all(
        torch.equal(m.unit, torch.arange(width)) and m.over is None
        for c in found
        for m in c.members
    )
    if len(found) != len(gaps) + 1 or len({c.name for c in found}) < len(found) or not straight:
        raise PlanError(
            "the residual stream is not free in every block (print(sec.trace(model, inputs)) says "
            "what locks it), so it has no basis of its own to be sliced in"
        )
    return tuple(found)


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = call_arguments(copy.deepcopy(inputs))
    with evaluating(model), torch.no_grad():
        found = tensors_in(model(*args, **kwargs))
    return [t.double() for t in found if t.is_floating_point()]
