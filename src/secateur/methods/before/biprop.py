"""Multi-Prize tickets (biprop): a subnetwork of random weights that is good with signs alone."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.engine.seams import Moment, Tensors, straight_through
from secateur.methods.before.edge_popup import EdgePopup, signed_constant
from secateur.methods.registry import Method, method


def gain(weight: Tensor, mask: Tensor) -> Tensor:
    r"""The best scale of the signs of $m \odot w$: $\lVert m \odot w \rVert_1 / \lVert m \rVert_1$.

    Example:
        >>> import torch
        >>> gain(torch.tensor([1.0, -3.0, 9.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    kept = mask.to(weight.dtype)
    return (weight.abs() * kept).sum() / kept.sum().clamp(min=1)


@dataclass(frozen=True)
class Binary(EdgePopup):
    r"""Forward $\alpha\,\mathrm{sgn}(w)\,m$; backward $\partial L/\partial |s| = g\,w$."""

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        scale = (gain(weight.detach(), mask) * mask).to(weight.dtype)
        size = aux["score"].abs().to(weight.dtype) * weight.detach().abs()
        return weight.detach().sign() * straight_through(scale, size)


@method(stage="before", paper="arXiv:2103.09377")
def biprop(
    amount: float = 0.5, *, lr: float = 0.1, constant: bool = True, scope: Any = "er"
) -> Method:
    r"""Each layer has one number $\alpha$ and signs; scores that are trained say which signs count.

    The weights keep their random values, of which the forward sees the sign. At the end the weight
    of each layer is $\alpha$, $-\alpha$ or zero: one bit a weight that is left.

    Args:
        amount: Fraction that is left out.
        lr: Of the scores.
        constant: Give all weights of a layer one size at first, as ``edge_popup`` does, without
            which a network that has no norms passes on next to nothing; else they stay as they
            came.
        scope: Allocation over layers; the paper takes the same fraction of each ("uniform"), which
            leaves small last layers next to nothing at high sparsity.

    Example:
        >>> biprop(0.5).gate.trains_weights
        False
    """
    return Method(
        amount,
        criterion=None,
        scope=scope,
        gate=Binary(lr=lr),
        transform=signed_constant if constant else None,
    )
