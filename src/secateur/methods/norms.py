"""The norms of residual streams: what they are given, who reads them, and folding them into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import run
from secateur.errors import PlanError
from secateur.graph import UnitClass
from secateur.measure.calling import evaluating, unfused
from secateur.plan.bases import SHORTCUT, neutral, offset
from secateur.plan.gaps import Gap, drop


def norms_of(model: nn.Module, classes: Sequence[UnitClass]) -> dict[str, str]:
    """Module of each norm of some residual streams -> the class that it normalises.

    Raises:
        PlanError: A stream that no norm with a scale and nothing else reads.
    """
    found: dict[str, str] = {}
    for c in classes:
        for m in c.members:
            name = m.tensor.rpartition(".")[0]
            own = dict(model.get_submodule(name).named_parameters(recurse=False))
            scaled = "weight" in own and own.keys() <= {"weight", "bias"}
            if scaled and own["weight"].dim() == 1:
                found[name] = c.name
    missing = [c.name for c in classes if c.name not in found.values()]
    if missing:
        raise PlanError(f"no norm was found that reads {missing[0]}, so it cannot be rotated")
    return found


def readers_of(
    model: nn.Module, classes: Sequence[UnitClass], of_norm: Mapping[str, str], batch: Any
) -> dict[str, str]:
    """Which norm each module reads that takes one of the classes in, seen in one forward."""
    said: dict[int, tuple[str, Tensor]] = {}  # by the memory of a norm's output, which is held
    takes: dict[str, str] = {}

    def normed(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            said[output.untyped_storage().data_ptr()] = (name, output)

        return hook

    def read(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            for t in (*args, *kwargs.values()):
                if isinstance(t, Tensor) and (found := said.get(t.untyped_storage().data_ptr())):
                    takes[name] = found[0]

        return hook

    readers = {m.tensor.rpartition(".")[0] for c in classes for m in c.members
               if not m.produces}  # fmt: skip
    with ExitStack() as stack, evaluating(model), unfused():
        for name in of_norm:
            handle = model.get_submodule(name).register_forward_hook(normed(name))
            stack.callback(handle.remove)
        for name in readers - of_norm.keys():
            module = model.get_submodule(name)
            pre = module.register_forward_pre_hook(read(name), with_kwargs=True)
            stack.callback(pre.remove)
        run(model, batch)
    return takes


@torch.no_grad()
def fold(
    model: nn.Module,
    classes: Sequence[UnitClass],
    of_norm: Mapping[str, str],
    takes: Mapping[str, str],
) -> tuple[Gap, ...]:
    """Multiply the scale of each norm into the weights that read it, and add what its shift gives.

    A layer norm becomes an RMS norm: the residual stream loses its mean where it is written.

    Returns:
        Which modules are others now, as data.

    Raises:
        PlanError: A shift that a reader cannot take.
    """
    layer_norms = [n for n in of_norm if isinstance(model.get_submodule(n), nn.LayerNorm)]
    for c in classes if layer_norms else ():
        for m in c.members:
            name = m.tensor.rpartition(".")[0]
            if m.produces and name not in of_norm and name.rpartition(".")[2] != SHORTCUT:
                p = model.get_parameter(m.tensor)
                p.copy_(p.double() - p.double().mean(m.axis, keepdim=True))
    shifts: dict[str, Tensor] = {}
    for c in classes:
        for m in c.members:
            reader = m.tensor.rpartition(".")[0]
            norm = takes.get(reader)
            if not m.produces and norm is not None and of_norm[norm] == c.name:
                p = model.get_parameter(m.tensor)
                own: Any = model.get_submodule(norm)
                shift = own._parameters.get("bias")
                if shift is not None:
                    extra = torch.tensordot(p.double(), shift.double(), dims=([m.axis], [0]))
                    shifts[reader] = shifts.get(reader, 0) + extra
                scale = own.weight + offset(own)
                p.mul_(scale.view([-1 if a == m.axis else 1 for a in range(p.dim())]))
    for name in of_norm:
        neutral(model.get_submodule(name))
    gaps = [Gap(name, becomes="rms") for name in layer_norms]
    for name, extra in shifts.items():
        bias: Any = getattr(model.get_submodule(name), "bias", None)
        if extra.dim() != 1 or not (bias is None or bias.shape == extra.shape):
            raise PlanError(
                f"{name} reads {takes[name]}, a norm with a shift, and has no bias of that shape "
                "that could take it: use a method that removes heads and neurons"
            )
        if bias is None:
            gaps.append(Gap(name, becomes="biased"))
    drop(model, gaps)
    for name, extra in shifts.items():
        model.get_submodule(name).bias.add_(extra)  # type: ignore[operator, union-attr]
    return tuple(gaps)
