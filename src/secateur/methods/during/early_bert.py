"""EarlyBERT: coefficients on heads and neurons, trained a little, say which of them stay."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@dataclass(frozen=True)
class Coefficients(Gate):
    r"""A coefficient $c$, first 1, before all that makes a head or a neuron, with a lasso on it."""

    lr: float | None = None
    strength: float = 1e-4
    shared: bool = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"c": torch.ones_like(weight)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return aux["c"] * mask

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["c"].abs()

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        return self.strength * torch.stack([a["c"].abs().sum() for a in aux.values()]).sum()


def at_the_end(progress: float, initial: float, final: float) -> float:
    """Nothing goes before the last step."""
    return initial


@method(stage="during", paper="arXiv:2101.00063")
def early_bert(amount: float = 0.4, *, strength: float = 1e-4, lr: float | None = None) -> Method:
    r"""Train weights and coefficients together for a short while; the smallest $|c|$ of each go.

    Heads compete with the heads of their layer, neurons with those of theirs. The coefficients of
    what stays are multiplied into its weights; ``finish(remove=True)`` gives the small network, to
    be trained in full.

    Args:
        amount: Fraction of the heads and of the neurons of each layer that goes.
        strength: $\lambda$.
        lr: Of the coefficients; None follows the user's.

    Raises:
        ConfigError: A negative strength.

    Example:
        >>> early_bert(0.25).granularity
        ('channel', {'kinds': ('head', 'kv_head', 'channel')})
    """
    if not strength >= 0:
        raise ConfigError(f"strength={strength} must not be negative")
    return Method(
        amount,
        criterion=None,
        granularity=("channel", {"kinds": ("head", "kv_head", "channel")}),
        gate=Coefficients(lr=lr, strength=strength),
        schedule=find(at_the_end, amount),
    )
