"""LoRAPrune: coupled units by the gradients of low-rank factors, a few at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.errors import ConfigError
from secateur.granularity.choose import keep_units
from secateur.granularity.sums import unit_sum
from secateur.methods.registry import Method, method
from secateur.schedule.registry import Schedule, find


@dataclass(frozen=True)
class LowRankGate(Gate):
    r"""Forward $(W + s B A) \odot M$ of a frozen $W$; A and B are trained, and say what goes."""

    schedule: Schedule
    lr: float | None = 1e-3
    optimizer: str = "adam"
    trains_weights: bool = False
    rank: int = 8
    scale: float = 2.0
    momentum: float = 0.9
    every: int = 10
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        mask = {"keep": torch.ones_like(weight, dtype=torch.bool)}
        if weight.dim() < 2:  # a bias goes with its unit, as it is
            return mask
        columns = weight.flatten(1).shape[1]
        drawn = torch.rand(self.rank, columns, generator=generator) * 2 - 1
        a = (drawn / math.sqrt(columns)).to(weight)
        return {**mask, "a": a, "b": weight.new_zeros(len(weight), self.rank)}

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return self.merged(weight, aux) * aux["keep"].to(weight.dtype)

    def merged(self, weight: Tensor, aux: Tensors) -> Tensor:
        """The weight with its product, dense; no gradient of its size is made."""
        if "a" not in aux:
            return weight.detach()
        return weight.detach() + self.scale * (aux["b"] @ aux["a"]).view_as(weight)

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["keep"].clone()

    def observe(self, aux: Auxiliaries, moment: Moment) -> None:
        elements = {
            n: importance(self.merged(moment.parameters[n], of), of["a"], of["b"])
            for n, of in aux.items()
            if "a" in of and of["a"].grad is not None and of["b"].grad is not None
        }
        for space, c in moment.units.classes.items():
            total = torch.zeros(c.size)
            for m in c.members:
                if m.tensor in elements:
                    along = elements[m.tensor].movedim(m.axis, 0).flatten(1).sum(1).float()
                    found = unit_sum(along, m.unit, c.size)
                    total = total.to(found.device) + found / found.norm().clamp(min=1e-30)
            before = moment.state.get(f"importance.{space}", torch.zeros_like(total))
            moment.state[f"importance.{space}"] = before.lerp(total, 1 - self.momentum)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        if moment.step % self.every and moment.step != moment.steps:
            return
        scores = {}
        for space in moment.units.classes:
            score = moment.state[f"importance.{space}"]
            stays = moment.state.get(f"stays.{space}", torch.ones_like(score)).bool()
            scores[space] = score.masked_fill(~stays, -torch.inf)
        units = keep_units(scores, moment.units, self.schedule.at(moment.progress), "uniform")
        moment.state.update({f"stays.{n}": k.float() for n, k in units.items()})
        for name, mask in moment.units.spread(units).items():
            aux[name]["keep"].copy_(mask)


def importance(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""$|\Delta W \odot (W + s B A)|$ with $\Delta W = g_B A + B g_A - g_B g_A$.

    $\Delta W$ stands for the gradient of the weight: what the product would change by if both
    factors took a step against their gradients.

    Args:
        weight: $W + s B A$, of any shape.
        a, b: ``(rank, inputs)`` and ``(outputs, rank)``, with their gradients.

    Example:
        >>> a, b = torch.tensor([[2.0]]), torch.tensor([[0.0]])
        >>> a.grad, b.grad = torch.tensor([[0.0]]), torch.tensor([[3.0]])
        >>> importance(torch.tensor([[-5.0]]), a, b)
        tensor([[30.]])
    """
    assert a.grad is not None and b.grad is not None
    change = b.grad @ a + b @ a.grad - b.grad @ a.grad
    return (change.view_as(weight) * weight).abs()


@method(stage="during", paper="arXiv:2305.18403")
def loraprune(
    amount: float = 0.5,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    every: int = 10,
    momentum: float = 0.9,
    lr: float = 1e-3,
    start: float = 0.1,
    end: float = 0.9,
) -> Method:
    r"""Heads and neurons go while low-rank factors beside frozen weights are trained.

    A unit's importance is the sum over its rows and columns of every coupled matrix, each matrix
    scaled to norm one, averaged over steps with ``momentum``. The same share of each layer goes,
    along a cubic schedule and for good; at the end the products are merged. What has no unit in it,
    as norms and embeddings, trains as the loop's optimizer says: freeze it for the paper's setting,
    and leave the first and last blocks out with ``ignore=``.

    Args:
        amount: Fraction of heads and neurons at the end.
        rank, alpha: Of the factors, whose product is scaled by alpha / rank.
        every: Steps between two looks.
        momentum: Of the importance.
        lr: Of the factors (Adam).
        start, end: Part of training in which units go.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> loraprune(0.5, rank=4).gate.scale
        4.0
    """
    if rank < 1 or every < 1 or not 0 <= momentum < 1:
        raise ConfigError(
            f"loraprune: rank={rank}, every={every}, momentum={momentum}: rank and every must be "
            "at least 1, momentum in [0, 1)"
        )
    gate = LowRankGate(
        find("cubic", amount, start=start, end=end),
        lr=lr, rank=rank, scale=alpha / rank, momentum=momentum, every=every,
    )  # fmt: skip
    kinds = {"kinds": ("head", "channel")}
    return Method(criterion=None, granularity=("channel", kinds), gate=gate)
