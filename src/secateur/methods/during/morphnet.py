"""MorphNet: a lasso on the scales of channels, each charged what it costs, then room to widen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Moment, Penalty, Rule, Tensors
from secateur.errors import ConfigError
from secateur.granularity.choose import keep_units
from secateur.methods.registry import Method, method
from secateur.methods.widths import sizes
from secateur.plan.widths import macs_share


def alive(size: Tensor, threshold: float) -> Tensor:
    """Which units count; the largest always does.

    Example:
        >>> alive(torch.tensor([0.2, 0.001]), 0.01)
        tensor([ True, False])
    """
    return (size > threshold) | (torch.arange(len(size), device=size.device) == size.argmax())


@dataclass(frozen=True)
class Costly(Penalty, Rule):
    r"""$\lambda \sum_u c_u |\gamma_u|$, $c_u$ what the unit adds to the MACs of what is alive.

    Args:
        strength: $\lambda$.
        threshold: Units no larger than this are dead: they cost nothing, and go at the end.
        end: Part of training after which the dead are gone and the others trained alone.
    """

    strength: float = 0.1
    threshold: float = 0.01
    end: float = 0.7
    scheduled = True

    def prices(self, moment: Moment, size: Tensors) -> Tensors:
        r"""$c_u = \partial F / \partial n$ at the numbers alive, F the share of the dense MACs."""
        with torch.enable_grad():
            widths = {
                s: alive(t.detach(), self.threshold).sum().float().requires_grad_()
                for s, t in size.items()
            }
            found = torch.autograd.grad(
                macs_share(moment.units.graph, widths), list(widths.values()), allow_unused=True
            )
        return {s: w.new_zeros(()) if g is None else g
                for (s, w), g in zip(widths.items(), found, strict=True)}  # fmt: skip

    def gradients(self, moment: Moment) -> None:
        if moment.progress >= self.end:
            return
        with torch.enable_grad():
            size = sizes(moment)
            price = self.prices(moment, size)
            value = torch.stack([price[s] * t.sum() for s, t in size.items()]).sum()
            trained = list(moment.parameters.values())
            found = torch.autograd.grad(self.strength * value, trained, allow_unused=True)
        for p, g in zip(trained, found, strict=True):
            if g is not None and p.grad is not None:
                p.grad.add_(g.to(p.grad.dtype))

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        if moment.progress >= self.end and "shrunk" not in moment.state:
            self.finish(moment)

    @torch.no_grad()
    def finish(self, moment: Moment) -> None:
        if "shrunk" in moment.state:
            return
        size = sizes(moment)
        if moment.target:
            moment.keep(keep_units(size, moment.units, moment.target, "global"))
        else:
            moment.keep({s: alive(t, self.threshold) for s, t in size.items()})
        moment.state["shrunk"] = torch.tensor(True)


@method(stage="during", paper="arXiv:1711.06798")
def morphnet(
    amount: float | None = None,
    *,
    strength: float = 0.1,
    threshold: float = 0.01,
    end: float = 0.7,
) -> Method:
    r"""Shrink: training is charged $\lambda F$, with $F$ the MACs that live channels cost.

    A layer with $a_{in}$ and $a_{out}$ channels alive and C multiplications for each pair adds
    $C (a_{in} \sum |\gamma_{out}| + a_{out} \sum |\gamma_{in}|)$ to the loss. What follows the
    graph, as a residual stream, is one group with one size. Where no norm scales a channel, the
    norm of its weights stands for $|\gamma|$. The second half, the
    expansion, is ``secateur.plan.widths.widened``.

    Args:
        amount: Fraction of the channels that goes, the smallest; None leaves it to the threshold,
            as in the paper.
        strength: $\lambda$, of the share of the dense MACs.
        threshold: Below which a channel is dead.
        end: Part of training that is shrinking; then the live ones are trained without a charge.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> morphnet(strength=0.5).penalty.strength
        0.5
    """
    if strength < 0 or threshold < 0 or not 0 < end <= 1:
        raise ConfigError(
            f"morphnet: strength={strength}, threshold={threshold}, end={end}: strength and "
            "threshold must not be negative, end in (0, 1]"
        )
    both = Costly(strength, threshold, end)
    return Method(amount, criterion=None, granularity="channel", penalty=both, rule=both)
