"""STR: each layer learns the threshold below which its weights count as zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class SoftThreshold(Gate):
    r"""Forward $\mathrm{sign}(w)\,\mathrm{relu}(|w| - \sigma(s))$; $s$ shrinks by weight decay."""

    lr: float | None = None
    initial: float = -5.0
    decay: float = 1e-2

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"threshold": torch.tensor(self.initial, device=weight.device)}

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        threshold = aux["threshold"].sigmoid().to(weight.dtype)
        return weight.sign() * (weight.abs() - threshold).relu()

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return self.forward(weight, aux, weight, moment) != 0

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        return self.decay / 2 * torch.stack([a["threshold"] for a in aux.values()]).square().sum()


@method(stage="during", paper="arXiv:2002.03231", name="str")
def soft_threshold(
    *, initial: float = -5.0, decay: float = 1e-2, lr: float | None = None
) -> Method:
    r"""Soft threshold reparametrisation: how much goes, and where, follows from training.

    With $g = \partial L / \partial \tilde w$ and $\tilde w = \mathrm{sign}(w)\,
    \mathrm{relu}(|w| - \sigma(s_l))$, the weight gets $g \cdot 1[\tilde w \neq 0]$ and the layer's
    scalar $-\sigma'(s_l) \sum g\,\mathrm{sign}(w)\,1[\tilde w \neq 0]$ plus ``decay`` $s_l$, which
    raises the threshold from almost nothing. Decay and initial value set the sparsity; the paper's
    are far smaller and lower, for long runs (decay 2e-5, initial -3200 on ImageNet).

    Args:
        initial: Of $s_l$.
        decay: Weight decay of $s_l$.
        lr: Of $s_l$; None follows the optimizer's, as in the paper.

    Example:
        >>> soft_threshold().amount is None
        True

    Paper:
        Kusupati et al., ICML 2020.
    """
    return Method(criterion=None, gate=SoftThreshold(lr=lr, initial=initial, decay=decay))
