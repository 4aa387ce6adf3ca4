"""L1: weights are pulled to zero by the same force whatever their size, and small ones go."""

from dataclasses import dataclass

import torch

from secateur.engine.seams import Moment, Penalty
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class L1(Penalty):
    r"""$\lambda \sum |w|$ over weights, by its gradient or by its proximal operator.

    Args:
        strength: $\lambda$.
        proximal: After the step $w \leftarrow \mathrm{sign}(w) \max(|w| - \eta\lambda, 0)$, which
            gives exact zeros; otherwise $\lambda\,\mathrm{sign}(w)$ is added to the gradient.
    """

    strength: float = 1e-4
    proximal: bool = True

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ConfigError(f"strength={self.strength} must not be negative")

    @torch.no_grad()
    def gradients(self, moment: Moment) -> None:
        for p in [] if self.proximal else moment.weights():
            if p.grad is not None:
                p.grad.add_(p.sign(), alpha=self.strength)

    @torch.no_grad()
    def shrink(self, moment: Moment) -> None:
        for p in moment.weights() if self.proximal else []:
            p.copy_(p.sign() * (p.abs() - self.strength * moment.rate(p)).clamp_(min=0))


@method(stage="during", paper="arXiv:1506.02626")
def l1(amount: float | None = None, *, strength: float = 1e-4, proximal: bool = True) -> Method:
    r"""Train with $\lambda \lVert w \rVert_1$; at the end the smallest weights of all layers go.

    Args:
        amount: Fraction removed at the end; None leaves exactly what the penalty has not made
            zero.
        strength: $\lambda$.
        proximal: Soft thresholding after each step, by the learning rate times $\lambda$, or a
            subgradient, which comes near zero but never stays there.

    Raises:
        ConfigError: A subgradient without an amount, a negative strength.

    Example:
        >>> l1(0.9).penalty.strength
        0.0001
    """
    if amount is None and not proximal:
        raise ConfigError("a subgradient makes no weight exactly zero: give amount=")
    return Method(amount, scope="global", soft=True, penalty=L1(strength, proximal))
