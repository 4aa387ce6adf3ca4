"""DMCP: channels as a Markov chain, one kept only if those before it are; widths are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.widths import budget_loss, fit
from secateur.plan.widths import macs_share

GROUPS = 10  # channels go in tenths of a layer; the first tenth always stays


def groups(units: int, chain: Tensor) -> Tensor:
    """The value of a chain of groups for each unit."""
    return chain[torch.arange(units, device=chain.device) * len(chain) // units]


def marginals(alpha: Tensor, units: int) -> Tensor:
    r"""$P_k = \prod_{i \le k} \sigma(\alpha_i)$ of the group of each unit; the first group's is 1.

    Example:
        >>> marginals(torch.zeros(2), 3)
        tensor([1.0000, 0.5000, 0.2500])
    """
    return groups(units, torch.cat([alpha.new_ones(1), alpha.sigmoid()]).cumprod(0))


@dataclass(frozen=True)
class Markov(Gate):
    """Weights see whole networks of sampled widths, the chain sees the marginals."""

    lr: float | None = 0.1
    shared: bool = True
    macs: float = 0.5
    strength: float = 0.1
    warm: float = 0.2
    end: float = 0.6
    random = True
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {
            "alpha": weight.new_zeros(min(GROUPS, len(weight)) - 1),
            "units": torch.tensor(len(weight)),
        }

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        if moment.progress >= self.end or not moment.model.training:
            return mask.float()
        kind, warming = moment.step % 4, moment.progress < self.warm
        chain = marginals(aux["alpha"], len(weight))
        if moment.validating:
            return chain.detach() if warming else chain
        number = len(aux["alpha"]) + 1
        drawn = torch.rand(number, generator=moment.generator).to(chain.device)
        place = torch.arange(number, device=chain.device)
        if kind == 0:  # the sandwich: all, the least, and twice what is drawn
            stays = torch.ones_like(drawn)
        elif kind == 1:
            stays = (place == 0).float()
        elif warming:  # all widths alike
            stays = (place <= drawn[0] * number).float()
        else:  # a walk along the chain, which ends at the first group that does not stay
            stays = torch.cat([drawn.new_ones(1), (drawn[1:] < aux["alpha"].sigmoid()).float()])
            stays = stays.cumprod(0)
        stays = groups(len(weight), stays)
        return stays if warming else straight_through(stays, chain)

    def width(self, aux: Tensors, shift: float) -> Tensor:
        """The expected number of units, rounded."""
        chain = marginals(aux["alpha"].detach() + shift, int(aux["units"]))
        return chain.sum().round().clamp(min=1)

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return torch.arange(len(weight), device=weight.device) < self.width(aux, 0.0)

    def expected(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        """Expected MACs, as a fraction of the dense network's: widths of layers are independent."""
        widths = {s: marginals(a["alpha"], int(a["units"])).sum() for s, a in aux.items()}
        return macs_share(moment.units.graph, widths)

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        if not self.warm <= moment.progress < self.end:
            return None
        return self.strength * budget_loss(self.expected(aux, moment), self.macs)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        if moment.progress >= self.end:
            fit(moment, aux, "alpha", self.width, self.macs)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="arXiv:2005.03354")
def dmcp(
    *,
    macs: float = 0.5,
    lr: float = 0.1,
    strength: float = 0.1,
    warm: float = 0.2,
    end: float = 0.6,
) -> Method:
    r"""Differentiable Markov channel pruning: group k of a layer stays with $\sigma(\alpha_k)$, if
    group k - 1 does.

    Weights are trained under, in turn, the full network, the least one and two random ones: of
    uniform widths until ``warm``, then drawn from the chain (the paper adds up these four in each
    step and distils from the full one). The chain learns on batches of ``validation=`` of
    ``sec.attach``, in which every channel is weighed by its marginal $P_k$, and on
    $\lambda\,\ell(E[F])$ that pulls the expected MACs into ``macs``; without validation batches
    straight through the loop's own. At ``end`` widths are the expected ones, shifted together to
    meet the budget, and what is left is trained.

    Args:
        macs: Budget, as a fraction of the dense network's MACs.
        lr: Of $\alpha$ (SGD).
        strength: $\lambda$.
        warm: Part of training before the chain learns.
        end: Part of training that is the search.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> dmcp(macs=0.25).gate.strength
        0.1
    """
    if not 0 < macs <= 1 or strength < 0 or not 0 <= warm < end <= 1:
        raise ConfigError(
            f"dmcp: macs={macs}, strength={strength}, warm={warm}, end={end}: macs in (0, 1], "
            "strength not negative, 0 <= warm < end <= 1"
        )
    gate = Markov(lr=lr, macs=macs, strength=strength, warm=warm, end=end)
    return Method(criterion=None, granularity="channel", gate=gate)
