"""Edge-popup: train which weights of a random network stay, and never a weight."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.masks import inputs_of
from secateur.engine.seams import Gate, Moment, Tensors, straight_through
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class EdgePopup(Gate):
    r"""Forward $w \cdot 1[|s| \text{ in the top } k]$; backward $\partial L/\partial s = g\,w$."""

    lr: float = 0.1
    trains_weights: bool = False

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        # kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan_in)
        bound = weight[0].numel() ** -0.5
        drawn = torch.rand(weight.shape, generator=generator) * 2 - 1
        return {"score": (drawn * bound).to(weight)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return straight_through(mask, aux["score"].abs())

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["score"].abs()


@torch.no_grad()
def signed_constant(moment: Moment) -> None:
    r"""Make every weight $\pm \sqrt{2 / (k\,n)}$, n its inputs and k the fraction that stays.

    The signs are those that the weights have, so that doing it again changes nothing.
    """
    kept = max(1 - moment.target, 1e-6)
    modules = dict(moment.model.named_modules())
    for name, p in moment.parameters.items():
        _, inputs = inputs_of(modules[name.rpartition(".")[0]], p)
        size = (2 / (kept * inputs * p.shape[2:].numel())) ** 0.5
        p.copy_(torch.where(p < 0, -size, size).to(p.dtype))


@method(stage="before", paper="arXiv:1911.13299")
def edge_popup(
    amount: float = 0.5, *, lr: float = 0.1, constant: bool = True, scope: Any = "er"
) -> Method:
    r"""Weights are never trained; each has a score, and the highest of each layer count.

    The scores are trained by the straight-through gradient; a sign flip of a score changes nothing.
    What is random is the signs: with the usual initialisation of torch's layers the few weights
    that stay pass on next to nothing, and the scores do not learn.

    Args:
        amount: Fraction that is left out.
        lr: Of the scores.
        constant: Give all weights of a layer one size at first, as scales what is left to
            variance 2 / n, the best of the paper's initialisations; else they stay as they came.
        scope: Allocation over layers; the paper takes the same fraction of each ("uniform"), which
            leaves small last layers next to nothing at high sparsity.

    Example:
        >>> edge_popup(0.5).gate.trains_weights
        False
    """
    return Method(
        amount,
        criterion=None,
        scope=scope,
        gate=EdgePopup(lr=lr),
        transform=signed_constant if constant else None,
    )
