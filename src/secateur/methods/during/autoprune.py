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
from secateur.schedule.registry import find

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
    r"""$t = w\,h$; backward $\partial w = g\,h$ and $\partial m = g\,\mathrm{sgn}(w)\,
    \tilde h'(m)$, with $\mathrm{sgn}(0) = 1$ lest a weight of zero never come back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, m: Tensor, kept: Tensor, estimator: str) -> Tensor:
        ctx.save_for_backward(weight, m, kept)
        ctx.estimator = estimator
        return weight * kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = grads
        weight, m, kept = ctx.saved_tensors
        sign = torch.where(weight < 0, -1.0, 1.0).to(m.dtype)
        return g * kept, g.to(m.dtype) * sign * slope(ctx.estimator, m), None, None


@dataclass(frozen=True)
class Auxiliary(Gate):
    """One auxiliary parameter a weight."""

    lr: float | None = 0.01
    optimizer: str = "adam"
    estimator: str = "softplus"
    strength: float = 1e-3
    initial: float = 0.3
    settled: float = 0.75
    scheduled: bool = False  # the number that stays follows a schedule, not from the signs of m

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"m": torch.full_like(weight, self.initial, dtype=torch.float32)}

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        kept = mask if self.scheduled else aux["m"] > 0
        return Gated.apply(weight, aux["m"], kept, self.estimator)

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["m"]

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["m"].detach() > 0

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        if self.scheduled:
            return None  # the schedule says how many go
        soft = ESTIMATORS[self.estimator]
        kept = [straight_through(a["m"] > 0, soft(a["m"])).sum() for a in aux.values()]
        return self.strength * torch.stack(kept).sum()

    def observe(self, aux: Auxiliaries, moment: Moment) -> None:
        # What does not count moves by decay alone: momentum from when it did is forgotten.
        for name, p in moment.parameters.items():
            kept = moment.masks[name] if self.scheduled else aux[name]["m"] > 0
            slots = moment.optimizer.state.get(p, {})
            for key in ("momentum_buffer", "exp_avg"):
                if isinstance(slots.get(key), Tensor):
                    slots[key].mul_(kept)
        if self.scheduled and moment.progress >= self.settled:
            for of in aux.values():
                of["m"].grad = None  # the choice stands still: what is kept is fine-tuned

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="Xiao, Wang and Rajasekaran, NeurIPS 2019")
def autoprune(
    amount: float | None = None,
    *,
    estimator: str = "softplus",
    strength: float = 1e-3,
    lr: float = 0.01,
    inner_optimizer: str = "adam",
    initial: float = 0.3,
    end: float = 0.5,
    settled: float = 0.75,
) -> Method:
    r"""Bilevel: weights learn on training batches, auxiliaries $m$ on those of ``validation=``.

    With $t = w\,h$, $h = 1[m > 0]$ (for an amount: $m$ among the highest), estimator $\tilde h$,

    $$m \leftarrow m - \eta\,(\tfrac{\partial L_{val}}{\partial t}\,\mathrm{sgn}(w)\,\tilde h'(m)
      + \mu\,\tilde h'(m)), \qquad
      w \leftarrow w - \eta\,(\tfrac{\partial L_{train}}{\partial t}\,h(m) + \lambda w)$$

    The sign in place of $w$ lets a small weight speak as loud as a large one. A weight that does
    not count is forgotten by the optimizer's own decay $\lambda$ and can come back. Without
    ``validation=`` in ``sec.attach`` the auxiliaries learn on the training batches too.

    Args:
        amount: Fraction removed, along a cubic schedule. None leaves it to $\mu$, as in the paper.
        estimator: "softplus", "leaky_relu" (slope 0.1 below zero) or "linear".
        strength: $\mu$, per weight, where there is no amount.
        lr: $\eta$ of $m$.
        inner_optimizer: Of $m$, "adam" or "sgd".
        initial: Of $m$.
        end, settled: Parts of training after which the amount, and the choice, stand.

    Raises:
        ConfigError: There is no such estimator, or ``settled`` is before ``end``.

    Example:
        >>> autoprune(0.9, estimator="linear").gate.estimator
        'linear'
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(unknown("estimator", estimator, ESTIMATORS))
    if not 0 < end <= settled <= 1:
        raise ConfigError(f"autoprune: end={end}, settled={settled}: 0 < end <= settled <= 1")
    gate = Auxiliary(lr, inner_optimizer, estimator, strength, initial, settled, amount is not None)
    schedule = "one-shot" if amount is None else find("cubic", amount, end=end)
    return Method(amount, criterion=None, scope="global", schedule=schedule, gate=gate)
