"""DSA: how much each layer keeps is trained on validation data, by a differentiable budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.widths import fit, sizes
from secateur.plan.widths import macs_share


def soft_mask(size: Tensor, share: Tensor, sharpness: float) -> Tensor:
    r"""Probabilities $p_i = 1/(1 + (b_i/\beta_1)^{-\beta_2})$ with $\beta_1$ such that their mean
    is $\alpha$.

    The gradient in $\alpha$ is that of the implicit function,
    $\partial p_i/\partial\alpha = n\,p_i(1 - p_i)/\sum_j p_j(1 - p_j)$; in b there is none.

    Args:
        size: b, positive, ``(units,)``.
        share: $\alpha$, scalar in (0, 1).
        sharpness: $\beta_2$.

    Example:
        >>> soft_mask(torch.tensor([1.0, 2.0, 4.0]), torch.tensor(0.5), 1.0)
        tensor([0.3333, 0.5000, 0.6667])
    """
    log = size.detach().double().clamp(min=1e-12).log() * sharpness
    wanted = float(share.detach().clamp(1e-4, 1 - 1e-4))
    low, high = float(log.min()) - 12.0, float(log.max()) + 12.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = float((log - middle).sigmoid().mean()) >= wanted
        low, high = (middle, high) if enough else (low, middle)
    p = (log - (low + high) / 2).sigmoid().to(share.dtype)
    spread = p * (1 - p)
    slope = len(p) * spread / spread.sum().clamp(min=1e-12)
    return p + slope * (share - share.detach())


@dataclass(frozen=True)
class Allocated(Gate):
    """A trained share of each space; its units are drawn by size, ever less at random."""

    lr: float | None = 0.05
    optimizer: str = "adam"
    shared: bool = True
    macs: float = 0.5
    initial: float = 3.0
    hardness: float = 1.0
    blunt: float = 1.0
    sharp: float = 50.0
    end: float = 0.6
    random = scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"theta": weight.new_tensor(self.initial), "size": torch.ones_like(weight)}

    def sharpness(self, moment: Moment) -> float:
        r"""$\beta_2$, growing exponentially."""
        return self.blunt * (self.sharp / self.blunt) ** min(moment.progress / self.end, 1.0)

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        if moment.progress >= self.end or not moment.model.training:
            return mask.float()
        p = soft_mask(aux["size"], aux["theta"].sigmoid(), self.sharpness(moment))
        drawn = torch.rand(len(p), generator=moment.generator).to(p.device) < p.detach()
        return straight_through(drawn | keep_top(aux["size"], 1), p)

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return keep_top(aux["size"], int(self.width(aux, 0.0)))

    def width(self, aux: Tensors, shift: float) -> Tensor:
        """How many units stay."""
        share = (aux["theta"].detach() + shift).sigmoid()
        return (share * len(aux["size"])).round().clamp(min=1)

    def excess(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        """How far the expected MACs are above the budget, as a fraction of it."""
        widths = {s: a["theta"].sigmoid() * len(a["size"]) for s, a in aux.items()}
        return macs_share(moment.units.graph, widths) / self.macs - 1

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        if moment.progress >= self.end:
            return None
        dual = moment.state.get("dual", torch.zeros(()))
        pull = (dual + self.hardness * self.excess(aux, moment)).relu()
        return (pull.square() - dual.square()) / (2 * self.hardness)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        if "fitted" in moment.state:
            return
        dual = moment.state.get("dual", torch.zeros(()))
        moment.state["dual"] = (dual + self.hardness * self.excess(aux, moment)).relu()
        for space, size in sizes(moment).items():
            aux[space]["size"].copy_(size)
        if moment.progress >= self.end:
            fit(moment, aux, "theta", self.width, self.macs)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="arXiv:2004.02164")
def dsa(
    *,
    macs: float = 0.5,
    lr: float = 0.05,
    hardness: float = 1.0,
    blunt: float = 1.0,
    sharp: float = 50.0,
    end: float = 0.6,
) -> Method:
    r"""Differentiable sparsity allocation: minimise the loss over the keep ratios $\alpha_g$.

    $\alpha_g = \sigma(\theta_g)$ for each class of coupled channels. A channel of size b (of its
    norm's scale, else of its weights) stays with $p = 1/(1 + (b/\beta_1)^{-\beta_2})$, $\beta_1$
    solved so that the mean is $\alpha$, drawn anew at each step and trained straight through; as
    $\beta_2$ grows the largest stay. $\theta$ learns on ``validation=`` of ``sec.attach``, if
    given, under $F(\alpha) \le$ ``macs``. The authors split that constraint by an ADMM-inspired
    step; here it is the augmented Lagrangian of an inequality, which is shorter. At ``end`` one
    shift of all $\theta$ meets the budget exactly, and what is left is trained.

    Args:
        macs: Budget, as a fraction of the dense network's MACs.
        lr: Of $\theta$ (Adam).
        hardness: Weight of the constraint.
        blunt, sharp: $\beta_2$ at first and at ``end``.
        end: Part of training that is the search.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> dsa(macs=0.25).gate.macs
        0.25
    """
    if not 0 < macs <= 1 or hardness <= 0 or not 0 < blunt <= sharp or not 0 < end <= 1:
        raise ConfigError(
            f"dsa: macs={macs}, hardness={hardness}, blunt={blunt}, sharp={sharp}, end={end}: macs "
            "and end in (0, 1], hardness positive, 0 < blunt <= sharp"
        )
    gate = Allocated(lr=lr, macs=macs, hardness=hardness, blunt=blunt, sharp=sharp, end=end)
    return Method(criterion=None, granularity="channel", gate=gate)
