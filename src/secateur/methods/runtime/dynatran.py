"""DynaTran: activations below a threshold become zero, and rows that are all zero are skipped."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.engine.batches import require, require_seen, run, take
from secateur.engine.runtime import Counted, put
from secateur.errors import ConfigError, PlanError
from secateur.measure.calling import device_of, evaluating, to_device
from secateur.methods.registry import Method, method

_POINTS = 400  # of the curve from threshold to sparsity
_WORTH = 0.1  # of the rows must be zero before they are sorted out


@method(stage="runtime", paper="arXiv:2302.14705")
def dynatran(*, sparsity: float | None = None, threshold: float | None = None) -> Method:
    """Acts on the inputs of all linear layers; one comparison an activation, no sorting.

    The paper also thresholds queries, keys and attention inside, which fused attention hides.

    Args:
        sparsity: Fraction of zeros wanted; the threshold is read off the curve that data give.
        threshold: Or the threshold itself: what is smaller in size is zero, as what was before.

    Raises:
        ConfigError: Neither or both, or a value out of range.

    Example:
        >>> dynatran(threshold=0.1).gate.threshold
        0.1
    """
    if (sparsity is None) == (threshold is None):
        raise ConfigError("give either sparsity= (fraction of zeros) or threshold=")
    if not 0 <= (sparsity or 0) < 1 or (threshold or 0) < 0:
        raise ConfigError(f"sparsity={sparsity} must be in [0, 1), threshold={threshold} positive")
    return Method(gate=DynaTran(sparsity, threshold))


@dataclass(frozen=True)
class DynaTran:
    """The gate; see ``dynatran``."""

    sparsity: float | None
    threshold: float | None

    def install(self, model: nn.Module, data: Iterable[Any] | None, out: ExitStack) -> Counted:
        layers = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
        if not layers:
            raise PlanError("the model has no linear layer whose input could be thresholded")
        threshold = self.threshold
        if threshold is None:
            source = require(data, "Finding a threshold", "data=")
            threshold = inverse(*curve(model, list(layers.values()), source), self.sparsity or 0.0)
        counts = Counts()
        for layer in layers.values():
            put(layer, Thresholded(layer, threshold, counts), out)
        return lambda: {
            "threshold": threshold, "zeros": counts.zeros / max(counts.values, 1),
            "skipped": counts.skipped / max(counts.rows, 1),
        }  # fmt: skip


@dataclass
class Counts:
    """How many values and rows there were, and how many of these were nothing."""

    values: int = 0
    zeros: int = 0
    rows: int = 0
    skipped: int = 0


@dataclass
class Thresholded:
    """The forward of a linear layer that computes the rows which are not zero."""

    layer: nn.Linear
    threshold: float
    counts: Counts = field(default_factory=Counts)

    def __call__(self, x: Tensor) -> Tensor:
        small = (x.abs() < self.threshold) | (x == 0)
        rows = ~small.reshape(-1, small.shape[-1]).all(-1)
        self.counts.values += small.numel()
        self.counts.zeros += int(small.sum())
        self.counts.rows += rows.numel()
        x = x.masked_fill(small, 0)
        weight, bias = self.layer.weight, self.layer.bias
        alive = int(rows.sum())
        if rows.numel() - alive < _WORTH * rows.numel():
            return F.linear(x, weight, bias)
        self.counts.skipped += rows.numel() - alive
        out = x.new_zeros(rows.numel(), weight.shape[0])
        if bias is not None:
            out = out + bias
        out[rows] = F.linear(x.reshape(-1, x.shape[-1])[rows], weight, bias)
        return out.view(*x.shape[:-1], -1)


def curve(
    model: nn.Module, layers: list[nn.Linear], source: Iterable[Any]
) -> tuple[Tensor, Tensor]:
    """Thresholds, and the fraction of the inputs that is smaller or zero; both ascend.

    Args:
        model: Runs densely.
        layers: Some of its layers.
        source: Batches.
    """
    sizes: list[Tensor] = []
    weights: list[int] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        flat = args[0].detach().abs().flatten().float()
        # Evenly spaced order statistics of each call; float32 would round indices above 2^24.
        at = (torch.linspace(0, 1, _POINTS, dtype=torch.float64) * (len(flat) - 1)).long()
        sizes.append(flat.sort().values[at.to(flat.device)])
        weights.append(len(flat))

    with ExitStack() as stack, evaluating(model):
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(see).remove)
        for batch in take(source):
            run(model, to_device(batch, device_of(model)))
    values = torch.cat(sizes)
    require_seen(values, "the input of a linear layer")
    share = torch.tensor(weights, device=values.device).repeat_interleave(_POINTS) / _POINTS
    order = values.argsort()
    below = share[order].cumsum(0) - share[order]
    return values[order], below.clamp(min=share[values == 0].sum()) / share.sum()


def inverse(thresholds: Tensor, fractions: Tensor, wanted: float) -> float:
    """The smallest threshold at which at least the wanted fraction is smaller.

    Example:
        >>> inverse(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.4, 0.8]), 0.4)
        0.5
    """
    at = int(torch.searchsorted(fractions.contiguous(), wanted))
    return float(thresholds[min(at, len(thresholds) - 1)])
