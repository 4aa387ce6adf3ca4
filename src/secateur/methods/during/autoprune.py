"""AutoPrune: auxiliary parameters say which weights count, and learn on validation data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.names import unknown

LEAK = 0.1
# Stand-ins for the step function in the backward pass; their slopes are the coarse gradients.
ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda m: m,
    "leaky_relu": lambda m: F.leaky_relu(m, LEAK),
    "softplus": F.softplus,
}


def slope(estimator: str, m: Tensor) -> Tensor:
    """Derivative of the estimator.

    Example:
        >>> slope("softplus", torch.tensor([0.3]))
        tensor([0.5744])
    """
    with torch.enable_grad():
        at = m.detach().requires_grad_()
        return torch.autograd.grad(ESTIMATORS[estimator](at).sum(), at)[0]


class Gated(torch.autograd.Function):
    r"""$t = w\,h(m)$; backward $\partial w = g\,h(m)$ and $\partial m = g\,\mathrm{sgn}(w)\,
    \tilde h'(m)$, with $\mathrm{sgn}(0) = 1$ lest a weight of zero never come back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, m: Tensor, estimator: str) -> Tensor:
        ctx.save_for_backward(weight, m)
        ctx.estimator = estimator
        return weight * (m > 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,) = grads
        weight, m = ctx.saved_tensors
        sign = torch.where(weight < 0, -1.0, 1.0).to(m.dtype)
        return g * (m > 0), g.to(m.dtype) * sign * slope(ctx.estimator, m), None


@dataclass(frozen=True)
class Auxiliary(Gate):
    """One auxiliary parameter a weight."""

    lr: float | None = 0.01
    optimizer: str = "adam"
    estimator: str = "softplus"
    strength: float = 1e-2
    initial: float = 0.3

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"m": torch.full_like(weight, self.initial, dtype=torch.float32)}

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return Gated.apply(weight, aux["m"], self.estimator)

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["m"]

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["m"].detach() > 0

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        steps = [
            straight_through(a["m"] > 0, ESTIMATORS[self.estimator](a["m"])) for a in aux.values()
        ]
        kept = torch.stack([h.sum() for h in steps]).sum()
        total = sum(h.numel() for h in steps)
        reached = moment.target > 0 and float(kept.detach()) <= (1 - moment.target) * total
        return kept * (0 if reached else self.strength)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        # What does not count moves by decay alone: momentum from when it did is forgotten.
        for name, p in moment.parameters.items():
            slots = moment.optimizer.state.get(p, {})
            for key in ("momentum_buffer", "exp_avg"):
                if isinstance(slots.get(key), Tensor):
                    slots[key].mul_(aux[name]["m"] > 0)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="Xiao, Wang and Rajasekaran, NeurIPS 2019")
def autoprune(
    amount: float | None = None,
    *,
    estimator: str = "softplus",
    strength: float = 1e-2,
    lr: float = 0.01,
    inner_optimizer: str = "adam",
    initial: float = 0.3,
) -> Method:
    r"""Bilevel: weights learn on training batches, auxiliaries $m$ on those of ``validation=``.

    With $t = w\,h(m)$, $h = 1[m > 0]$, and $\tilde h$ the estimator,

    $$m \leftarrow m - \eta\,(\tfrac{\partial L_{val}}{\partial t}\,\mathrm{sgn}(w)\,\tilde h'(m)
      + \mu\,\tilde h'(m)), \qquad
      w \leftarrow w - \eta\,(\tfrac{\partial L_{train}}{\partial t}\,h(m) + \lambda w)$$

    The sign in place of $w$ lets a small weight speak as loud as a large one. A weight that does
    not count is forgotten by the optimizer's own decay $\lambda$ and can come back. Without
    ``validation=`` in ``sec.attach`` the auxiliaries learn on the training batches too.

    Args:
        amount: Fraction removed: $\mu$ is zero where it is reached, and at the end exactly the
            highest $m$ stay. None leaves it to $\mu$, as in the paper.
        estimator: "softplus", "leaky_relu" (slope 0.1 below zero) or "linear".
        strength: $\mu$, per weight.
        lr: $\eta$ of $m$.
        inner_optimizer: Of $m$, "adam" or "sgd".
        initial: Of $m$.

    Raises:
        ConfigError: There is no such estimator.

    Example:
        >>> autoprune(0.9, estimator="linear").gate.estimator
        'linear'
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(unknown("estimator", estimator, ESTIMATORS))
    gate = Auxiliary(lr, inner_optimizer, estimator, strength, initial)
    return Method(amount, criterion=None, scope="global", gate=gate)
