"""The dense model with what a plan or masks remove set to zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.engine.masks import MaskSet
from secateur.errors import PlanError
from secateur.graph.forward import named_tensors
from secateur.graph.kept import forget
from secateur.plan.gaps import skipping
from secateur.plan.plan import Plan
from secateur.plan.surgery import check_architecture, masked


def masked_state(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, with the planned slices set to zero."""
    tensors = named_tensors(model)
    return {n: masked(plan, n, t) if n in plan.touched else t for n, t in tensors.items()}


@contextmanager
def masked_model(model: nn.Module, plan: Plan | MaskSet) -> Iterator[nn.Module]:
    """The model itself with what a plan or masks remove set to zero, and as it was afterwards.

    Raises:
        PlanError: The plan or the masks are of another model.

    Example:
        >>> with sec.masked(model, plan): accuracy = evaluate(model)
    """
    if not isinstance(plan, Plan | MaskSet):
        raise PlanError(f"masked needs a plan or masks, not {type(plan).__name__}")
    if not isinstance(plan, MaskSet) and plan.dropped:
        if plan.keep:
            raise PlanError(
                "a plan that drops blocks and narrows others cannot be masked: apply it"
            )
        with skipping(model, plan.dropped):
            yield model
        return
    tensors = named_tensors(model)
    names = plan.check(model) if isinstance(plan, MaskSet) else plan.touched
    if not isinstance(plan, MaskSet):
        check_architecture(plan, model)
    saved = {n: tensors[n].detach().clone() for n in names}
    graph = None if isinstance(plan, MaskSet) else plan.graph
    kept = {} if graph is None else graph.kept
    try:
        forget(model, kept)  # what it has computed from other weights, now and afterwards
        with torch.no_grad():
            for n, t in saved.items():
                m = plan[n].to(t.device) * t if isinstance(plan, MaskSet) else masked(plan, n, t)
                tensors[n].copy_(m)
        yield model
    finally:
        with torch.no_grad():
            for n, old in saved.items():
                tensors[n].copy_(old)
        forget(model, kept)
