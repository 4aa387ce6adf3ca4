"""Sheared LLaMA: gates of heads, neurons and width, trained towards a shape given beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Moment, Tensors
from secateur.errors import ConfigError
from secateur.methods.during.l0 import HardConcrete, open_probability
from secateur.methods.registry import Method, method

_OPEN = 5.0  # log alpha at first: all but certainly open
_LEAST = 0.01  # what a unit that belongs to the shape is multiplied by at least


@dataclass(frozen=True)
class Sheared(HardConcrete):
    r"""Hard concrete gates of units under one equality constraint for each class of units.

    The loss gets $\sum_k \lambda_k (s_k - t_k) + \phi_k (s_k - t_k)^2$, where $s_k$ is the mean
    probability that a gate of class k is open and $t_k$ the share that shall stay; $\lambda$ and
    $\phi$ climb it while the gates descend. $t_k$ falls linearly from one during ``warmup``.
    """

    lr: float | None = 1.0
    shared: bool = True
    shares: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.2
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        drawn = torch.randn(weight.shape, generator=generator) * 0.01
        return {
            "log_alpha": (drawn + _OPEN).to(weight.device),
            "multipliers": weight.new_zeros(2),
            "stay": torch.tensor(len(weight), device=weight.device),
        }

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        terms = []
        warm = min(moment.progress / self.warmup, 1.0)
        for space, a in aux.items():
            share = self.shares[moment.units.classes[space].kind]
            gap = open_probability(a["log_alpha"]).mean() - (1 - warm * share)
            powers, up = torch.stack([gap, gap.square()]), a["multipliers"]
            terms.append((up.detach() * powers - up * powers.detach()).sum())
        return torch.stack(terms).sum()

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        super().updated(aux, moment)
        for space, a in aux.items():
            share = self.shares[moment.units.classes[space].kind]
            a["stay"].fill_(max(round(len(a["log_alpha"]) * (1 - share)), 1))

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return keep_top(aux["log_alpha"].detach(), int(aux["stay"]))

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        expected = super().harden(weight, aux, torch.ones_like(mask), moment)
        return expected.clamp(min=_LEAST) * mask


@method(stage="during", paper="arXiv:2310.06694")
def sheared_llama(
    amount: float = 0.5,
    *,
    heads: float | None = None,
    neurons: float | None = None,
    width: float = 0.0,
    warmup: float = 0.2,
    lr: float = 1.0,
) -> Method:
    """Weights and gates are trained together; at the end every layer has exactly the shape.

    A gate belongs to a key-value head with its queries, a hidden neuron, or a component of the
    residual stream, which all layers share. What stays is then the same number in every layer, so
    that a stock config describes it; train on afterwards, as the paper does. Whole layers are left
    out by methods of depth.

    Args:
        amount: Fraction of heads and of neurons that goes.
        heads, neurons: Instead of it, for one of them; 0 leaves them alone.
        width: Fraction of the residual stream's components.
        warmup: Part of the run in which the shape is approached linearly.
        lr: Of gates and multipliers (Adam).

    Raises:
        ConfigError: An option out of range, or nothing shall go.

    Example:
        >>> sheared_llama(0.5, heads=0.25).gate.shares
        {'head': 0.25, 'channel': 0.5}
    """
    shares = {
        "head": amount if heads is None else heads,
        "channel": amount if neurons is None else neurons,
        "width": width,
    }
    if not all(0 <= share < 1 for share in shares.values()) or not 0 < warmup <= 1 or lr <= 0:
        raise ConfigError(
            f"sheared_llama: {shares}, warmup={warmup}, lr={lr}: shares must be in [0, 1), warmup "
            "in (0, 1], lr positive"
        )
    shares = {kind: share for kind, share in shares.items() if share}
    if not shares:
        raise ConfigError("sheared_llama: amount, heads, neurons and width are all 0: nothing goes")
    gate = Sheared(lr=lr, shares=shares, warmup=warmup)
    granularity = ("channel", {"kinds": tuple(shares)})
    return Method(criterion=None, granularity=granularity, gate=gate)
