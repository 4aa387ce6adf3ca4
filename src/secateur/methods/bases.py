"""A basis of its own for each block: principal components, with norms that have no scale."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import run
from secateur.errors import PlanError
from secateur.graph import Graph, UnitClass, trace
from secateur.graph.forward import call_arguments, tensors_in
from secateur.measure.calling import evaluating, unfused
from secateur.methods.depth import Depth
from secateur.plan.bases import SHORTCUT, rotate
from secateur.plan.gaps import Gap, drop

_MOST_CHANGE = 1e-3  # relative, of the outputs in float32


@dataclass
class Bases:
    """A model in which every block has a basis of its own.

    Attributes:
        graph: Of the model; the residual stream of each block is a class of its own.
        classes: These, in the order of the blocks.
        gaps: The shortcuts, as data.
        norms: Names of the modules that normalise each class.
        energy: By class the mean squares along its basis, falling, ``(width,)``.
    """

    graph: Graph
    classes: tuple[UnitClass, ...]
    gaps: tuple[Gap, ...]
    norms: dict[str, list[str]] = field(default_factory=dict)
    energy: dict[str, Tensor] = field(default_factory=dict)


def with_bases(depth: Depth, example_inputs: Any) -> Bases:
    """Fold the norms' scales, rotate each block to its principal components, mend by shortcuts.

    Args:
        depth: The model, which stays as it is, its chain of blocks, and batches.
        example_inputs: To trace by, and to show that the outputs stay.

    Raises:
        PlanError: The model cannot be rotated without changing: norms that are no RMS norms, or a
            residual stream that something else ties to a basis.
    """
    width = depth.reaching(depth.batches[0])[0].shape[-1]
    gaps = tuple(Gap(name, shortcut=width) for name in depth.blocks[1:])
    made = drop(copy.deepcopy(depth.model), gaps)
    graph = trace(made, example_inputs)
    here = Bases(graph, _residual(graph, gaps, width), gaps)
    before = _outputs(made, example_inputs)
    of_norm = _norms(made, here)
    grams, takes = _watch(made, here, of_norm, depth.batches)
    _fold(made, here, of_norm, takes)
    for c in here.classes:
        values, vectors = torch.linalg.eigh(grams[c.name])
        here.energy[c.name] = values.flip(0)
        for m in c.members:
            if m.tensor.rpartition(".")[0] not in of_norm:
                rotate(made, m.tensor, m.axis, vectors.flip(1))
    after = _outputs(made, example_inputs)
    change = max(
        (
            float((a - b).norm() / a.norm().clamp_min(1e-12))
            for a, b in zip(before, after, strict=True)
        ),
        default=0.0,
    )
    if not change <= _MOST_CHANGE:
        raise PlanError(
            f"rotating the residual stream of {type(depth.model).__name__} changes its outputs by "
            f"{change:.1e}: its norms are no plain RMS norms, or something else depends on the "
            "basis; use a method that removes heads and neurons"
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


def _norms(model: nn.Module, here: Bases) -> dict[str, str]:
    """Module of each norm of the residual stream -> its class."""
    found: dict[str, str] = {}
    for c in here.classes:
        for m in c.members:
            name = m.tensor.rpartition(".")[0]
            own = dict(model.get_submodule(name).named_parameters(recurse=False))
            if own.keys() == {"weight"} and own["weight"].dim() == 1:
                found[name] = c.name
                here.norms.setdefault(c.name, []).append(name)
    missing = [c.name for c in here.classes if c.name not in here.norms]
    if missing:
        raise PlanError(f"no norm was found that reads {missing[0]}, so it cannot be rotated")
    return found


def _watch(
    model: nn.Module, here: Bases, of_norm: Mapping[str, str], batches: Iterable[Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gram matrices of what the norms of each class are given, and which module reads which norm."""
    grams: dict[str, Tensor] = {}
    said: dict[int, tuple[str, Tensor]] = {}  # by the memory of a norm's output, which is held
    takes: dict[str, str] = {}
    masks: list[Tensor | None] = [None]

    def normed(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            x, mask = args[0].detach(), masks[0]
            kept = x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x
            rows = kept.reshape(-1, x.shape[-1]).double()
            grams[of_norm[name]] = grams.get(of_norm[name], 0) + rows.T @ rows
            said[output.untyped_storage().data_ptr()] = (name, output)

        return hook

    def read(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            for t in (*args, *kwargs.values()):
                if isinstance(t, Tensor) and (found := said.get(t.untyped_storage().data_ptr())):
                    takes[name] = found[0]

        return hook

    readers = {m.tensor.rpartition(".")[0] for c in here.classes for m in c.members
               if not m.produces}  # fmt: skip
    with ExitStack() as stack, evaluating(model), unfused():
        for name in of_norm:
            handle = model.get_submodule(name).register_forward_hook(normed(name))
            stack.callback(handle.remove)
        for name in readers - of_norm.keys():
            module = model.get_submodule(name)
            pre = module.register_forward_pre_hook(read(name), with_kwargs=True)
            stack.callback(pre.remove)
        for batch in batches:
            masks[0] = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            run(model, batch)
            said.clear()
    return grams, takes


@torch.no_grad()
def _fold(
    model: nn.Module, here: Bases, of_norm: Mapping[str, str], takes: Mapping[str, str]
) -> None:
    """Multiply the scale of each norm into the weights that read it."""
    for c in here.classes:
        for m in c.members:
            norm = takes.get(m.tensor.rpartition(".")[0])
            if not m.produces and norm is not None and of_norm[norm] == c.name:
                p = model.get_parameter(m.tensor)
                scale = model.get_parameter(f"{norm}.weight")
                p.mul_(scale.view([-1 if a == m.axis else 1 for a in range(p.dim())]))
    for name in of_norm:
        model.get_parameter(f"{name}.weight").fill_(1.0)


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = call_arguments(copy.deepcopy(inputs))
    with evaluating(model), torch.no_grad():
        found = tensors_in(model(*args, **kwargs))
    return [t.double() for t in found if t.is_floating_point()]
