"""UPop: masks on attention and MLP units compete by gradient and shrink to exactly zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sin

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.granularity.channel import ChannelUnits
from secateur.granularity.choose import keep_units
from secateur.methods.registry import Method, method


def standardised(values: Tensors, kinds: dict[str, str]) -> Tensors:
    r"""$z = (g - \mu_\kappa) / \sigma_\kappa$, mean and deviation over all units of a kind.

    Example:
        >>> g = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0])}
        >>> standardised(g, {"a": "head", "b": "head"})
        {'a': tensor([-1.2247,  0.0000]), 'b': tensor([1.2247])}
    """
    found = {}
    for space, own in values.items():
        alike = torch.cat([g for s, g in values.items() if kinds[s] == kinds[space]])
        found[space] = (own - alike.mean()) / alike.std(correction=0).clamp(min=1e-20)
    return found


def priced(units: ChannelUnits) -> ChannelUnits:
    """The same units, each as large as all weights that go with it, of what reads it too."""
    own = dict(units.graph.model.named_parameters())

    def weights(space: str) -> int:
        members = (m for m in units.classes[space].members if m.tensor in own)
        rows = sum(
            int((m.unit >= 0).sum()) * own[m.tensor].numel() // own[m.tensor].shape[m.axis]
            for m in members
        )
        return max(rows // units.counts[space], 1)

    return replace(units, sizes={space: weights(space) for space in units.counts})


@dataclass(frozen=True)
class Shrinking(Gate):
    """The marked units have one mask, which falls to zero; ``pull`` is minus their gradients."""

    lr: float | None = 1.0  # of plain descent, so that what moves is the gradient itself
    shared: bool = True
    every: int = 20
    end: float = 0.7
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"pull": torch.zeros_like(weight), "mask": torch.ones_like(weight)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return straight_through(aux["mask"].detach(), aux["pull"])

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return aux["mask"].detach() == 1

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        over = moment.progress >= self.end
        if "searched" in moment.state or (moment.step % self.every and not over):
            return
        share = 1.0 if over else sin(pi / 2 * moment.progress / self.end)
        kinds = {space: moment.units.classes[space].kind for space in aux}
        scores = standardised({space: a["pull"].detach() for space, a in aux.items()}, kinds)
        keep = keep_units(scores, priced(moment.units), moment.target * share, "global")
        for space, a in aux.items():
            a["mask"].copy_(torch.where(keep[space], 1.0, 1.0 - share))
            a["pull"].zero_()
        if over:
            moment.state["searched"] = torch.tensor(True)


@method(stage="during", paper="arXiv:2301.13741")
def upop(amount: float = 0.5, *, every: int = 20, end: float = 0.7) -> Method:
    r"""Unified and progressive: the units whose masks the loss wants smaller shrink, all as one.

    A mask $\zeta$, first 1, stands before each neuron of an MLP (each channel elsewhere) and each
    dimension of the heads of a layer, in queries, keys and values of all heads. Every ``every``
    steps up to T, ``end`` of the run, the gradients $\sum \partial L/\partial\zeta$ since the last
    look are standardised inside their kind, and the highest of all are marked, until a share
    $p_t = p \sqrt{(1 - \cos(\pi t/T))/2}$ of the weights of all units is; marked masks become
    $1 - p_t/p$, all others 1. So what is marked at T is exactly 0; the rest of the run trains what
    is left. The lasso on $\zeta$ of the paper adds the same to all gradients of a kind, which
    standardising takes away, and is left out.

    Args:
        amount: p, of the weights that units have, of what reads them too.
        every: Steps between two looks.
        end: Part of training that is the search; finished earlier, only what is marked then goes.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> upop(0.4).gate.end
        0.7

    Paper:
        Shi et al., ICML 2023.
    """
    if every < 1 or not 0 < end <= 1:
        raise ConfigError(f"upop: every={every}, end={end}: every at least 1, end in (0, 1]")
    kinds = ("head_dim", "channel")
    gate = Shrinking(every=every, end=end)
    return Method(amount, criterion=None, granularity=("channel", {"kinds": kinds}), gate=gate)
