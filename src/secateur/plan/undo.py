"""Undo a plan while what it removed is kept, and compare two plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.graph.forward import named_tensors
from secateur.plan.assign import with_tensors
from secateur.plan.encode import runs
from secateur.plan.selection import fill, scatter
from secateur.plan.surgery import check_architecture

if TYPE_CHECKING:
    from secateur.plan.plan import Plan


def removed_slices(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """What the plan removes from a model; see ``Plan.removed_slices``."""
    _refuse_dropped(plan)
    check_architecture(plan, model)
    tensors = named_tensors(model)
    return {n: tensors[n].detach()[_gone(plan, n, tensors[n])] for n in plan.touched}


def restore(
    plan: Plan, pruned: nn.Module, slices: Mapping[str, Tensor], onto: nn.Module
) -> nn.Module:
    """The original architecture again; see ``Plan.restore``."""
    _refuse_dropped(plan)
    check_architecture(plan, onto)
    kept = named_tensors(pruned)
    strange = [n for n in kept if n not in plan.shapes]
    if strange:
        raise PlanError(f"the pruned model has {strange[0]!r}, for which the original has no place")
    tensors = {}
    for name, shape in plan.shapes.items():
        t = kept.get(name)
        if t is None or tuple(t.shape) != plan.shape(name):
            found = "is missing" if t is None else f"has shape {tuple(t.shape)}"
            raise PlanError(
                f"{name} {found} instead of {plan.shape(name)}: give the model that this plan made"
            )
        tensors[name] = t.detach()
        if name in plan.touched:
            removed = slices.get(name)
            gone = _gone(plan, name, t)
            if removed is None or removed.shape != (int(gone.sum()),):
                raise PlanError(
                    f"the slices do not hold what was removed from {name}: give what "
                    "plan.removed_slices gave for this plan"
                )
            full = scatter(t.detach(), plan.selection(name), shape)
            full[gone] = removed.to(full)
            tensors[name] = full
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    return with_tensors(onto, copies)


def _refuse_dropped(plan: Plan) -> None:
    if plan.dropped:
        raise PlanError("a plan that drops whole blocks cannot be undone: keep the dense model")


def _gone(plan: Plan, name: str, like: Tensor) -> Tensor:
    """Where a tensor's removed values are; bool, of its original shape."""
    whole = torch.ones(plan.shapes[name], dtype=torch.bool, device=like.device)
    return ~fill(whole, plan.selection(name), False)


@dataclass(frozen=True)
class Difference:
    """Where two plans of one model differ.

    Attributes:
        here: Class -> units that only the first plan removes, as ``runs`` writes them; for a class
            chosen anew for every unit of another, one text for each of those, after ``/``.
        there: The same for the second plan.
        tensors: Tensor -> its shape after the first plan and after the second, where they differ.
    """

    here: Mapping[str, str]
    there: Mapping[str, str]
    tensors: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.here or self.there)

    def __str__(self) -> str:
        if not self:
            return "both plans remove the same units"
        lines = []
        for name in dict.fromkeys([*self.here, *self.there]):
            lines.append(name)
            for mark, side in (("-", self.here), ("+", self.there)):
                if name in side:
                    lines.append(f"  {mark} {side[name]}")
        return "\n".join(lines)


def difference(first: Plan, second: Plan) -> Difference:
    """Where two plans of one model differ; see ``Plan.diff``."""
    if {n: tuple(s) for n, s in first.shapes.items()} != {
        n: tuple(s) for n, s in second.shapes.items()
    }:
        raise PlanError("the plans were made for different architectures and cannot be compared")
    here: dict[str, str] = {}
    there: dict[str, str] = {}
    for name in dict.fromkeys([*first.keep, *second.keep]):
        whole = torch.ones(first.sizes.get(name, second.sizes.get(name, 0)), dtype=torch.bool)
        a, b = torch.broadcast_tensors(first.keep.get(name, whole), second.keep.get(name, whole))
        for side, mask in ((here, ~a & b), (there, a & ~b)):
            if mask.any():
                side[name] = "/".join(runs(row) for row in mask) if mask.dim() == 2 else runs(mask)
    tensors = {
        n: (first.shape(n), second.shape(n))
        for n in first.shapes
        if first.shape(n) != second.shape(n)
    }
    return Difference(here, there, tensors)
