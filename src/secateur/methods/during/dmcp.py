"""DMCP: channels as a Markov chain, one kept only if those before it are; widths are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.widths import largest_shift, macs_share

GROUPS = 10  # channels go in tenths of a layer; the first tenth always stays


def marginals(alpha: Tensor, units: int) -> Tensor:
    r"""$P_k = \prod_{i \le k} \sigma(\alpha_i)$ of the group of each unit; the first group's is 1.

    Example:
        >>> marginals(torch.zeros(2), 3)
        tensor([1.0000, 0.5000, 0.2500])
    """
    chain = torch.cat([alpha.new_ones(1), alpha.sigmoid()]).cumprod(0)
    group = torch.arange(units, device=alpha.device) * len(chain) // units
    return chain[group]


@dataclass(frozen=True)
class Markov(Gate):
    """Weights see whole networks of sampled widths, the chain sees the marginals."""

    lr: float | None = 0.1
    shared: bool = True
    macs: float = 0.5
    strength: float = 0.1
    warm: float = 0.2
    end: float = 0.6
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
        drawn = torch.rand(len(aux["alpha"]) + 1, generator=moment.generator).to(chain.device)
        if kind == 0:  # the sandwich: all, the least, and twice what is drawn
            stays = torch.ones_like(chain)
        elif kind == 1:
            stays = (
                torch.arange(len(chain), device=chain.device) * len(drawn) < len(chain)
            ).float()
        elif warming:  # all widths alike
            place = torch.arange(len(chain), device=chain.device) * len(drawn) // len(chain)
            stays = (place <= drawn[0] * len(drawn)).float()
        else:  # a walk along the chain, which ends at the first group that does not stay
            steps = torch.cat([drawn.new_ones(1), (drawn[1:] < aux["alpha"].sigmoid()).float()])
            group = torch.arange(len(chain), device=chain.device) * len(drawn) // len(chain)
            stays = steps.cumprod(0)[group]
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
        if moment.progress < self.end or "fitted" in moment.state:
            return
        shift = largest_shift(
            moment, lambda by: {s: self.width(a, by) for s, a in aux.items()}, self.macs
        )
        for a in aux.values():
            a["alpha"].add_(shift)
        moment.state["fitted"] = torch.tensor(True)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


def budget_loss(cost: Tensor, target: float) -> Tensor:
    r"""0 between $0.95\,T$ and T; above $\log\frac{E - 0.95 T}{0.05 T}$, below
    $\log\frac{T - E}{0.05 T}$.

    The slopes are those of the authors' $\log |E - 0.95\,T|$ and $\log |E - T|$; the constants
    make it continuous, and it is nowhere infinite.

    Example:
        >>> [round(float(budget_loss(torch.tensor(e), 0.5)), 3) for e in (1.0, 0.5, 0.48, 0.4)]
        [3.045, 0.0, 0.0, 1.386]
    """
    width = 0.05 * target
    over = (cost - 0.95 * target).clamp(min=width) / width
    under = (target - cost).clamp(min=width) / width
    return over.log() + under.log()


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
