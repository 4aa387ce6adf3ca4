"""Top-KAST: the forward sees the largest weights, the backward reaches some more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class TopKast(Gate):
    r"""Forward $w \cdot 1_A$ with $A$ = top D of $|w|$; gradients on $B$ = top D + M."""

    explore: float = 0.1
    strength: float = 1e-5
    stop: float = 1.0

    def backward_set(self, weight: Tensor, mask: Tensor, moment: Moment) -> Tensor:
        """B: what the forward sees, and the next largest weights, as a fraction of all."""
        if moment.progress >= self.stop:
            return mask
        size = weight.detach().abs().masked_fill(mask, torch.inf)
        return keep_top(size, int(mask.sum()) + round(self.explore * mask.numel()))

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        reached = weight * self.backward_set(weight, mask, moment)
        return straight_through(weight.detach() * mask, reached)

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return weight.detach().abs()

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        terms = []
        for n, p in moment.parameters.items():
            mask = moment.masks[n]
            beyond = self.backward_set(p, mask, moment) & ~mask
            density = mask.float().mean().clamp_min(1 / mask.numel())
            terms.append((p.float().abs() * (mask + beyond / density)).sum())
        return self.strength * torch.stack(terms).sum() if self.strength else None


@method(stage="during", paper="arXiv:2106.03517")
def top_kast(
    amount: float = 0.9,
    *,
    explore: float = 0.1,
    strength: float = 1e-5,
    stop: float = 1.0,
    scope: Any = "uniform",
) -> Method:
    r"""Sparse forwards and sparse gradients: $A \subseteq B$, both by magnitude, at every step.

    A is the largest fraction D = 1 - ``amount`` of the weights, B the largest D + M. Gradients are
    zero outside B, values outside A do not reach the output, and the loss has the term

    $$\lambda \Big( \sum_{A} |w| + \sum_{B \setminus A} |w| / D \Big)$$

    that makes newcomers earn their place. Weight decay and momentum of the optimizer move weights
    outside B too: give it none of the first for a set that is really left alone.

    Args:
        amount: Fraction that the forward does not see, 1 - D.
        explore: M, the fraction that gets gradients beside.
        strength: $\lambda$.
        stop: Part of training after which B = A.
        scope: Allocation of A over layers.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> top_kast(0.9).gate.explore
        0.1
    """
    if not 0 <= explore <= 1 or strength < 0 or not 0 < stop <= 1:
        raise ConfigError(
            f"top_kast: explore={explore}, strength={strength}, stop={stop}: explore must be in "
            "[0, 1], strength not negative, stop in (0, 1]"
        )
    gate = TopKast(explore=explore, strength=strength, stop=stop)
    return Method(amount, criterion=None, scope=scope, gate=gate)
