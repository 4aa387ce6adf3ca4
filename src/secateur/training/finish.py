"""The end of an attachment: hard weights, final masks, and smaller tensors where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.plan import Plan
from secateur.plan.carry import carry
from secateur.plan.verify import Verification
from secateur.training.handle import Handle
from secateur.training.removal import plan_of_zeros


@dataclass(frozen=True)
class Sparse:
    """What a finished run gives back.

    Attributes:
        model: The trained model; the smaller one if something was removed.
        masks: Which weights stayed, by the names of the model that was trained.
        notes: What a user should know.
        plan: What was removed physically, or None.
        verification: That removal equals masking, or None.
    """

    model: nn.Module
    masks: MaskSet
    notes: list[str] = field(default_factory=list)
    plan: Plan | None = None
    verification: Verification | None = None

    def __str__(self) -> str:
        removed = f", {self.plan}" if self.plan is not None else ""
        return f"{self.masks.sparsity:.2%} of {self.masks.total:,} weights are zero{removed}"


@torch.no_grad()
def finish(
    handle: Handle, remove: bool, example_inputs: Any, averages: Sequence[nn.Module] = ()
) -> Sparse:
    """End the run; see ``Handle.finish``."""
    moment, method = handle.moment, handle.method
    if remove and example_inputs is None:
        raise ConfigError("finish(remove=True) traces the model: give example_inputs")
    for average in averages:
        handle.masks.check(average)
    if moment.steps and moment.step < moment.steps:
        early = f"finished after {moment.step} of {moment.steps} steps"
        if method.schedule != "one-shot":
            handle.notes.append(
                f"{early}: the schedule had reached {moment.amount:.3g} of {moment.target:.3g}"
            )
        elif method.follows:
            handle.notes.append(f"{early}, which method {method.name!r} counts on for its target")
    if method.rule is not None:
        method.rule.finish(moment)
    if handle.gated is not None:
        moment.amount = max(moment.amount, moment.target)
        handle.refresh_gate()
        hard = [(model, _hardened(handle, model)) for model in (moment.model, *averages)]
        handle.detach()
        for model, values in hard:
            named = dict(model.named_parameters(remove_duplicate=False))
            for name, value in values.items():
                named[name].copy_(value)
    else:
        if method.soft and method.amount is None:
            moment.masks = {n: p != 0 for n, p in moment.parameters.items()}
        elif method.soft and (handle.schedule is None or handle.schedule.name == "one-shot"):
            scores = handle.score(method.criterion, None)
            moment.masks = handle.chosen(scores, moment.target)
        if method.criterion is not None or method.rule is not None:
            handle.enforce()
            for average in averages:
                handle.masks.apply(average)
        handle.detach()
    masks = handle.masks
    if not remove:
        return Sparse(moment.model, masks, handle.notes)
    graph = trace(moment.model, example_inputs)
    plan = plan_of_zeros(graph)
    small = plan.apply(moment.model)
    verification = plan.verify(moment.model, small)
    if note := carry(small, plan):
        handle.notes.append(note)
    return Sparse(small, masks, handle.notes, plan, verification)


def _hardened(handle: Handle, model: nn.Module) -> dict[str, torch.Tensor]:
    """What the gate leaves of the weights of the model, or of a copy."""
    gated = handle.gated
    assert gated is not None
    moment, gate = handle.moment, gated.gate
    named = dict(model.named_parameters(remove_duplicate=False))
    if not gate.shared:
        return {
            n: gate.harden(named[n].detach(), gated.aux[n], mask, moment).detach()
            for n, mask in moment.masks.items()
        }
    hard = {}
    for space, aux in gated.aux.items():
        keep = moment.state[f"units.{space}"].bool()
        ones = torch.ones(len(keep), device=keep.device)
        hard[space] = gate.harden(ones, aux, keep, moment).detach()
    factors = gated.units.spread(hard)
    return {
        n: named[n].detach() * f.to(named[n].dtype) * moment.masks[n] for n, f in factors.items()
    }
