"""L0: stochastic gates that are exactly zero with a probability that is trained (hard concrete)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.methods.registry import Method, method

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # gamma, zeta and beta of the paper


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    r"""Gate $z = \mathrm{clip}(\sigma((\log u - \log(1-u) + \log\alpha)/\beta)
    (\zeta-\gamma)+\gamma, 0, 1)$ of a uniform $u$.

    Example:
        >>> hard_concrete(torch.tensor([0.0]), torch.tensor([0.5]))
        tensor([0.5000])
    """
    soft = ((uniform.logit(eps=1e-6) + log_alpha) / TEMPERATURE).sigmoid()
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    r"""$P(z \neq 0) = \sigma(\log\alpha - \beta \log(-\gamma/\zeta))$.

    Example:
        >>> open_probability(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4010, 0.8318, 0.9734])
    """
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


@dataclass(frozen=True)
class HardConcrete(Gate):
    """Sampled gates while the model trains, their deterministic values in ``eval`` mode."""

    lr: float | None = 0.01
    optimizer: str = "adam"
    shared: bool = False
    strength: float = 1.0
    dropped: float = 0.5
    decay: float = 0.0
    random = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        drawn = torch.randn(weight.shape, generator=generator) * 0.01
        start = math.log(1 - self.dropped) - math.log(self.dropped)
        return {"log_alpha": (drawn + start).to(weight.device)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        log_alpha = aux["log_alpha"]
        if not moment.model.training:
            return _expected(log_alpha)
        uniform = torch.rand(log_alpha.shape, generator=moment.generator)  # the same on each rank
        return hard_concrete(log_alpha, uniform.to(log_alpha.device))

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["log_alpha"]

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return _expected(aux["log_alpha"]) > 0

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        odds = {n: open_probability(a["log_alpha"]) for n, a in aux.items()}
        total = sum(p.numel() for p in odds.values())
        density = torch.stack([p.sum() for p in odds.values()]).sum() / total
        value = self.strength * (density - (1 - moment.target) * bool(moment.target)).relu()
        if self.decay and not self.shared:
            squares = [(p * moment.parameters[n].square()).sum() for n, p in odds.items()]
            value = value + self.decay / 2 * torch.stack(squares).sum()
        return value

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        for a in aux.values():
            a["log_alpha"].clamp_(math.log(1e-2), math.log(1e2))

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * (_expected(aux["log_alpha"]) * mask).to(weight.dtype)


def _expected(log_alpha: Tensor) -> Tensor:
    return (log_alpha.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


@method(stage="during", paper="arXiv:1712.01312")
def l0(
    amount: float | None = None,
    *,
    strength: float = 1.0,
    lr: float = 0.01,
    dropped: float = 0.5,
    decay: float = 0.0,
    granularity: Any = "element",
) -> Method:
    r"""L0 regularisation: the loss is charged with the expected share of gates that are open.

    The forward sees $w z$ with $z$ sampled once a step from the hard concrete distribution, and the
    loss gets ``strength`` $\cdot \frac1N\sum P(z \neq 0) + \frac{\lambda_2}{2} \sum P(z \neq 0)
    \,w^2$. At the end the gates are constants, and what is zero is gone.

    Args:
        amount: Fraction removed; the charge stops where it is reached in expectation, and at the
            end exactly the most probable stay. None leaves it to the charge, as in the paper.
        strength: Of the charge, for all gates together (the paper's $\lambda$ times their number).
        lr: Of $\log\alpha$ (Adam).
        dropped: Initial probability, about, with which a gate is closed.
        decay: $\lambda_2$; gates of single weights only.
        granularity: What has a gate of its own.

    Example:
        >>> l0(granularity="channel").gate.shared
        True

    Paper:
        Louizos et al., ICLR 2018.
    """
    gate = HardConcrete(
        lr=lr, shared=granularity != "element", strength=strength, dropped=dropped, decay=decay
    )
    return Method(amount, criterion=None, scope="global", granularity=granularity, gate=gate)
