"""DeepR: connections with fixed signs walk at random, die where they would change sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secateur.engine.masks import keep_top
from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class Rewiring(Rule):
    """After each step: shrinkage, noise, death of what crossed zero, and as many new at random."""

    l1: float
    noise: float

    def start(self, moment: Moment) -> None:
        for n, p in moment.parameters.items():  # a zero has no sign: it counts as positive
            moment.state[f"sign.{n}"] = torch.where(p.detach() < 0, -1.0, 1.0).to(p.dtype)

    def after_step(self, moment: Moment) -> None:
        for n, p in moment.parameters.items():
            rate = moment.rate(p)
            mask, sign = moment.masks[n], moment.state[f"sign.{n}"].to(p)
            walk = torch.randn(p.shape, generator=moment.generator).to(p)
            p.add_(mask * sign * rate * (self.noise * walk - self.l1))
            dead = mask & (p * sign < 0)
            moment.clear(n, dead)
            free = ~mask  # what has just died comes back only where there is no other place
            drawn = torch.rand(p.shape, generator=moment.generator).to(p.device)
            drawn = (drawn + free).masked_fill(mask & ~dead, -1.0)
            moment.masks[n] = (mask & ~dead) | keep_top(drawn, int(dead.sum()))


@method(stage="during", paper="arXiv:1711.05136")
def deepr(
    amount: float = 0.9, *, l1: float = 1e-5, noise: float = 1e-5, scope: Any = "er"
) -> Method:
    r"""Deep rewiring: $w = s\theta$, the sign $s$ fixed at the start, active while $\theta \ge 0$.

    The user's optimizer makes the step along the gradient; what is added to it after the step is

    $$\theta \leftarrow \theta - \eta \alpha + \eta \sigma \nu, \qquad \nu \sim N(0, 1)$$

    on active connections, with $\eta$ the learning rate of the weight's own group; so every step
    updates weights, and the exchange follows it. A connection with
    $\theta < 0$ becomes dormant, and as many dormant ones of its layer, at random, become active
    at zero, with empty optimizer slots. Momentum and weight decay are not in the paper; plain SGD
    is its setting.

    Args:
        amount: Fraction that is absent, from the start.
        l1: $\alpha$, the pull towards zero.
        noise: $\sigma$, size of the random walk.
        scope: Allocation of the first, random mask; "uniform" leaves small last layers next to
            nothing at high sparsity.

    Raises:
        ConfigError: A negative option.

    Example:
        >>> deepr(0.9).rule.l1
        1e-05
    """
    if l1 < 0 or noise < 0:
        raise ConfigError(f"deepr: l1={l1} and noise={noise} must not be negative")
    return Method(amount, criterion="random", scope=scope, rule=Rewiring(l1, noise))
