"""WDPruning: how wide each layer is follows from a threshold trained under a budget of MACs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.widths import fit
from secateur.plan.widths import macs_share


@dataclass(frozen=True)
class Thresholded(Gate):
    """The most salient units of each space stay, as many as its threshold says."""

    lr: float | None = 0.02
    optimizer: str = "adam"
    shared: bool = True
    macs: float = 0.5
    hardness: float = 0.1
    initial: float = 3.0
    end: float = 0.7
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"saliency": torch.ones_like(weight), "threshold": weight.new_tensor(self.initial)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        if moment.progress >= self.end:
            return mask.float()
        return straight_through(mask, aux["saliency"] + aux["threshold"].sigmoid())

    def width(self, aux: Tensors, shift: float) -> Tensor:
        """How many units stay."""
        share = (aux["threshold"].detach() + shift).sigmoid()
        return (share * len(aux["saliency"])).ceil().clamp(min=1)

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        return keep_top(aux["saliency"], int(self.width(aux, 0.0)))

    def excess(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        """How far the MACs of what stays are above the budget, as a share of the dense ones."""
        widths = {
            space: straight_through(
                self.width(a, 0.0), a["threshold"].sigmoid() * len(a["saliency"])
            )
            for space, a in aux.items()
        }
        return (macs_share(moment.units.graph, widths) - self.macs).relu()

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        if moment.progress >= self.end:
            return None
        over = self.excess(aux, moment)
        first, second = self.multipliers(moment)
        return first * over + second * over.square()

    def multipliers(self, moment: Moment) -> tuple[Tensor, Tensor]:
        r"""$\lambda_1$ and $\lambda_2$, first 0."""
        zero = torch.zeros(())
        return moment.state.get("first", zero), moment.state.get("second", zero)

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        if "fitted" in moment.state:
            return
        over = self.excess(aux, moment).detach().cpu()
        first, second = self.multipliers(moment)
        moment.state["first"] = first + self.hardness * over
        moment.state["second"] = second + self.hardness * over.square()
        if moment.progress >= self.end:
            fit(moment, aux, "threshold", self.width, self.macs)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="AAAI 2022 (Yu et al.)")
def wdpruning(
    *,
    macs: float = 0.5,
    lr: float = 0.02,
    hardness: float = 0.1,
    initial: float = 3.0,
    end: float = 0.7,
) -> Method:
    r"""Width pruning: heads and neurons by saliency s, their numbers by thresholds $\theta$.

    Of the n heads of a layer, or the n neurons of an MLP (channels elsewhere), the
    $\lceil \sigma(\theta)\,n \rceil$ most salient stay. Both are trained with the weights, straight
    through the mask as $s_i + \sigma(\theta)$, under
    $\lambda_1 (R - T)_+ + \lambda_2 (R - T)_+^2$, R the share of the dense MACs that is left and
    $\lambda_1 \mathrel{+}= \eta (R - T)_+$, $\lambda_2 \mathrel{+}= \eta (R - T)_+^2$ after each
    step. At ``end`` one shift of all $\theta$ meets the budget, and what is left is trained. The
    early classifiers of the paper, which make a network shallower, are not part of this.

    Args:
        macs: T, as a fraction of the dense network's MACs.
        lr: Of s and $\theta$ (Adam); 0.0025 in the authors' code.
        hardness: $\eta$.
        initial: $\theta$ at first, which keeps (almost) all; 10 in the authors' code.
        end: Part of training that is the search.

    Raises:
        ConfigError: An option out of range; at ``end``, a budget out of reach.

    Example:
        >>> wdpruning(macs=0.6).gate.macs
        0.6

    Paper:
        Yu et al., Width & Depth Pruning for Vision Transformers, AAAI 2022.
    """
    if not 0 < macs <= 1 or not lr > 0 or not hardness > 0 or not 0 < end <= 1:
        raise ConfigError(
            f"wdpruning: macs={macs}, lr={lr}, hardness={hardness}, end={end}: macs and end in "
            "(0, 1], lr and hardness positive"
        )
    gate = Thresholded(lr=lr, macs=macs, hardness=hardness, initial=initial, end=end)
    kinds = ("head", "kv_head", "channel")
    return Method(criterion=None, granularity=("channel", {"kinds": kinds}), gate=gate)
