"""SSL: group lasso on filters, channels, shapes and layers, so that whole structures go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.seams import Moment, Penalty
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.names import unknown

# The axes of (out, in, ...) along which a group runs; a matrix has no more than two.
GROUPS: dict[str, tuple[int, ...]] = {
    "filter": (1, 2, 3, 4),
    "channel": (0, 2, 3, 4),
    "shape": (0,),
    "depth": (0, 1, 2, 3, 4),
    "kernel": (2, 3, 4),
    "element": (),
}


@dataclass(frozen=True)
class GroupLasso(Penalty):
    r"""$\lambda \sum_g c_g \lVert W_g \rVert_2$, by its proximal operator or its gradient.

    Args:
        strength: $\lambda$.
        groups: Of ``filter`` $W_{n,:,:,:}$, ``channel`` $W_{:,c,:,:}$, ``shape`` $W_{:,c,h,w}$,
            ``depth`` $W_{:,:,:,:}$, ``kernel`` $W_{n,c,:,:}$ and ``element``, which is L1; of
            several, one after the other.
        proximal: After the step $W_g \leftarrow \max(0, 1 - \eta\lambda c_g/\lVert W_g \rVert)W_g$,
            exactly zero at the end; otherwise $\lambda c_g W_g / \lVert W_g \rVert$ is added to the
            gradient.
        scaled: $c_g = \sqrt{|g|}$, the root of the group's size, instead of 1.
    """

    strength: float = 1e-3
    groups: tuple[str, ...] = ("filter", "channel")
    proximal: bool = True
    scaled: bool = False

    def __post_init__(self) -> None:
        for group in self.groups:
            if group not in GROUPS:
                raise ConfigError(unknown("group", group, GROUPS))
        if not self.strength >= 0:
            raise ConfigError(f"strength={self.strength} must not be negative")

    def force(self, weight: Tensor, group: str) -> Tensor:
        r"""$\lambda c_g / \lVert W_g \rVert$ of each group, 0 of one that is zero; broadcasts."""
        axes = tuple(a for a in GROUPS[group] if a < weight.dim())
        values = weight.float()
        norm = values.square().sum(axes, keepdim=True).sqrt() if axes else values.abs()
        size = weight.numel() / norm.numel()
        by = self.strength * (size**0.5 if self.scaled else 1.0)
        return torch.where(norm > 0, by / norm, 0.0)

    @torch.no_grad()
    def gradients(self, moment: Moment) -> None:
        for p in [] if self.proximal else moment.weights():
            for group in self.groups:
                if p.grad is not None:
                    p.grad.add_((p * self.force(p, group)).to(p.grad.dtype))

    @torch.no_grad()
    def shrink(self, moment: Moment) -> None:
        for p in moment.weights() if self.proximal else []:
            for group in self.groups:
                p.mul_((1 - moment.rate(p) * self.force(p, group)).clamp_(min=0).to(p.dtype))


@method(stage="during", paper="arXiv:1608.03665")
def ssl(
    amount: float | None = None,
    *,
    strength: float = 1e-3,
    groups: Sequence[str] = ("filter", "channel"),
    proximal: bool = True,
    scaled: bool = False,
    granularity: Any = "channel",
) -> Method:
    r"""Train with a group lasso; at the end what it has made zero goes, or the weakest units.

    Args:
        amount: Fraction of the units removed at the end, by norm; None leaves exactly what the
            penalty has not made zero.
        strength: $\lambda$.
        groups: Which structures: "filter", "channel", "shape", "depth", "kernel", "element". With
            "depth" a whole layer may go, which closes the network where no shortcut goes around
            it: name all other layers in ``ignore=``.
        proximal: Shrink after each step, with exact zeros, or add a subgradient.
        scaled: Weigh a group by the root of its size.
        granularity: The units of ``amount``.

    Raises:
        ConfigError: A subgradient without an amount, an unknown group, a negative strength.

    Example:
        >>> ssl(groups=["shape"]).penalty.groups
        ('shape',)
    """
    if amount is None and not proximal:
        raise ConfigError("a subgradient makes no group exactly zero: give amount=")
    return Method(
        amount,
        criterion="l2",
        granularity="element" if amount is None else granularity,
        soft=True,
        penalty=GroupLasso(strength, tuple(groups), proximal, scaled),
    )
