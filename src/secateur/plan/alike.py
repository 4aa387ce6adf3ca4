"""Whether two models that hold the same tensors compute the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.forward import call_arguments, tensors_in
from secateur.measure.calling import evaluating

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of outputs, relative; coarser types 2e-2


def tolerance(model: nn.Module) -> float:
    """The relative error of outputs that rounding explains."""
    return _TOLERANCE.get(next(model.parameters()).dtype, 2e-2)


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors in the outputs of one forward in evaluation mode, small weights made larger."""
    args, kwargs = call_arguments(copy.deepcopy(inputs))
    with evaluating(model), torch.no_grad(), enlarged(model), torch.random.fork_rng():
        torch.manual_seed(0)  # a forward that draws noise draws the same for both
        return [t.detach().cpu() for t in tensors_in(model(*args, **kwargs))]


def distance_of(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative error over the outputs; infinite where shapes differ or a number is NaN."""
    if not a or [t.shape for t in a] != [t.shape for t in b]:
        return float("inf")
    errors = [0.0]
    for x, y in zip(a, b, strict=True):
        if x.is_floating_point():
            x, y = x.double(), y.double()
            error = float((x - y).norm() / x.norm().clamp_min(1e-12))
            errors.append(error if math.isfinite(error) else float("inf"))  # max() forgets a NaN
        elif not torch.equal(x, y):
            return float("inf")
    return max(errors)


@contextmanager
def enlarged(model: nn.Module) -> Iterator[None]:
    """Matrices whose rows are shorter than one are scaled to about that, and back to the bit.

    With the weights of a model that was hardly trained an attention is nearly a mean, whatever its
    heads and its scale, so the outputs would show no difference. Powers of two scale exactly.
    """
    scaled: list[tuple[Tensor, float]] = []
    try:
        p: Tensor
        for p in model.parameters():
            length = p.float().norm() / math.sqrt(max(len(p), 1)) if p.dim() > 1 else 0
            if p.is_floating_point() and 0 < (n := float(length)) < 0.5:
                scaled.append((p, 2.0 ** -round(math.log2(n))))
                p.mul_(scaled[-1][1])
        yield
    finally:
        for p, factor in scaled:
            p.div_(factor)
