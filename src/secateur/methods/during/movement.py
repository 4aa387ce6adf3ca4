"""Movement pruning: weights that move away from zero stay, whatever their size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.seams import Gate, Moment, Tensors, straight_through
from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@dataclass(frozen=True)
class Movement(Gate):
    r"""Forward $w \cdot 1[S \text{ in the top}]$; backward $\partial L/\partial S = g\,w$."""

    lr: float | None = 0.01
    optimizer: str = "adam"

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"score": torch.zeros_like(weight, dtype=torch.float32)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return straight_through(mask, aux["score"])

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["score"]


@method(stage="during", paper="arXiv:2005.07683")
def movement(
    amount: float = 0.9,
    *,
    lr: float = 0.01,
    inner_optimizer: str = "adam",
    start: float = 0.1,
    end: float = 0.8,
    scope: Any = "uniform",
) -> Method:
    r"""Scores collect $-\sum_t \eta\, g_t w_t$, masked weights too; the highest stay.

    $g$ is the gradient of the weight that the forward sees, so a masked weight whose score rises
    comes back. The amount follows the cubic schedule between ``start`` and ``end``.

    Args:
        amount: Fraction removed at the end.
        lr: Of the scores, which start at zero.
        inner_optimizer: Of the scores, "adam" or "sgd".
        start, end: Part of training in which the amount grows.
        scope: Allocation over layers.

    Example:
        >>> movement(0.9).gate.scores(torch.ones(1), {"score": torch.tensor([0.5])})
        tensor([0.5000])

    Paper:
        Sanh, Wolf and Rush, NeurIPS 2020.
    """
    schedule = find("cubic", amount, start=start, end=end)
    gate = Movement(lr=lr, optimizer=inner_optimizer)
    return Method(amount, criterion=None, scope=scope, schedule=schedule, gate=gate)
