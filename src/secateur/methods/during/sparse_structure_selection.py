"""Sparse Structure Selection: factors on channels or blocks, sent to zero by a faster lasso."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class ScalingFactors(Gate):
    r"""A factor $\lambda \ge 0$ for each unit, trained by accelerated proximal gradient steps.

    With the gradient $g$ of the loss, $S_\alpha$ soft thresholding by $\alpha$,

    $$z = S_{\eta\gamma}(\lambda - \eta g), \quad v \leftarrow z - \lambda + \mu v, \quad
      \lambda \leftarrow \max(z + \mu v, 0).$$

    Args:
        lr: $\eta$.
        strength: $\gamma$.
        momentum: $\mu$; 0 is ISTA.
    """

    lr: float = 0.1
    strength: float = 0.01
    momentum: float = 0.9
    shared: bool = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"scale": torch.ones_like(weight)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return aux["scale"]

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["scale"].detach() > 0

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        for space, tensors in aux.items():
            scale = tensors["scale"]  # the engine's step has made it lambda - eta g
            before = moment.state.get(f"before.{space}", torch.ones_like(scale))
            speed = moment.state.get(f"speed.{space}", torch.zeros_like(scale))
            z = scale.sign() * (scale.abs() - self.lr * self.strength).clamp(min=0)
            speed = z - before + self.momentum * speed
            scale.copy_((z + self.momentum * speed).clamp(min=0))
            moment.state[f"before.{space}"] = scale.detach().clone()
            moment.state[f"speed.{space}"] = speed


@method(stage="during", paper="arXiv:1707.01213")
def sparse_structure_selection(
    *,
    strength: float = 0.01,
    lr: float = 0.1,
    momentum: float = 0.9,
    granularity: Any = "channel",
) -> Method:
    r"""Weights and factors are trained together; units whose factor is zero at the end go.

    How many follows from ``strength``. A factor stands before what last makes its unit (the
    norm's scale and shift, or filter and bias without a norm), and is multiplied into these
    weights at the end. A block gives $x + \lambda F(x)$, and with $\lambda = 0$ what it is given.

    Args:
        strength: $\gamma$, the weight of $\sum |\lambda|$.
        lr: $\eta$, learning rate of the factors.
        momentum: $\mu$ of the factors.
        granularity: "channel" is the paper's neurons, and its groups where a convolution has
            groups; "layer" is its residual blocks.

    Example:
        >>> sparse_structure_selection().gate.strength
        0.01
    """
    return Method(
        criterion=None,
        granularity=granularity,
        gate=ScalingFactors(lr=lr, strength=strength, momentum=momentum),
    )
