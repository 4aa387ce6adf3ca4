"""Network Slimming: a lasso on the scales of batch norms says which channels are not needed."""

from dataclasses import dataclass

import torch

from secateur.engine.seams import Moment, Penalty
from secateur.errors import ConfigError
from secateur.granularity.units import is_norm
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class ScaleLasso(Penalty):
    r"""$s \sum |\gamma|$ over all batch norms, by its subgradient $s\,\mathrm{sign}(\gamma)$.

    Args:
        strength: $s$.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ConfigError(f"strength={self.strength} must not be negative")

    @torch.no_grad()
    def gradients(self, moment: Moment) -> None:
        norms = [m for m in moment.model.modules() if is_norm(m)]
        if not norms:
            raise ConfigError(
                f"{type(moment.model).__name__} has no batch norm with a scale: use another method"
            )
        for norm in norms:
            scale = norm.get_parameter("weight")
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)


@method(stage="during", paper="arXiv:1708.06519")
def network_slimming(amount: float = 0.5, *, strength: float = 1e-4) -> Method:
    r"""Train with a lasso on $\gamma$; at the end the channels of smallest $|\gamma|$ go.

    All channels behind a batch norm compete, each as one; of every class one stays. With a channel
    go its filters and their biases, $\gamma$ and $\beta$; ``finish(remove=True)`` takes them out of
    the network. Fine-tuning should follow.

    Args:
        amount: Fraction of the channels behind batch norms that goes at the end.
        strength: $s$; the authors' code has 1e-4 for VGG and 1e-5 for ResNet and DenseNet.

    Raises:
        ConfigError: A negative strength; at the first step, a model without batch norms.

    Example:
        >>> network_slimming(0.7).criterion
        'bn_scale'
    """
    return Method(
        amount,
        criterion="bn_scale",
        granularity=("channel", {"equal": True}),
        scope="global",
        soft=True,
        penalty=ScaleLasso(strength),
    )
