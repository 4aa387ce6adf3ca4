"""L2: weights are pulled to zero in proportion to their size, and the smallest go at the end."""

from dataclasses import dataclass

import torch

from secateur.engine.seams import Moment, Penalty
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class L2(Penalty):
    r"""$\frac{\lambda}{2} \sum w^2$ over weights, by its gradient or by its proximal operator.

    Args:
        strength: $\lambda$.
        proximal: After the step $w \leftarrow w / (1 + \eta\lambda)$; otherwise $\lambda w$ is
            added to the gradient.
    """

    strength: float = 1e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ConfigError(f"strength={self.strength} must not be negative")

    @torch.no_grad()
    def gradients(self, moment: Moment) -> None:
        for p in [] if self.proximal else moment.weights():
            if p.grad is not None:
                p.grad.add_(p, alpha=self.strength)

    @torch.no_grad()
    def shrink(self, moment: Moment) -> None:
        for p in moment.weights() if self.proximal else []:
            p.div_(1 + self.strength * moment.rate(p))


@method(stage="during", paper="arXiv:1506.02626")
def l2(amount: float = 0.9, *, strength: float = 1e-4, proximal: bool = False) -> Method:
    r"""Train with $\frac{\lambda}{2} \lVert w \rVert_2^2$; then the smallest weights go.

    Neither form makes weights exactly zero, so an amount is always needed.

    Args:
        amount: Fraction of all weights removed at the end.
        strength: $\lambda$.
        proximal: Shrink after each step, by the learning rate times $\lambda$, instead of adding
            to the gradient.

    Raises:
        ConfigError: A negative strength.

    Example:
        >>> l2(0.9).penalty.proximal
        False
    """
    return Method(amount, scope="global", soft=True, penalty=L2(strength, proximal))
