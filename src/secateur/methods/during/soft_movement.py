"""Soft movement pruning: a threshold on movement scores, and a charge on all of them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors, straight_through
from secateur.methods.registry import Method, method
from secateur.schedule.registry import Schedule, find

LEAST = 0.005  # of a layer's weights stay, whatever the scores


@dataclass(frozen=True)
class SoftMovement(Gate):
    r"""Forward $w \cdot 1[\sigma(S) > \tau]$; the loss gets $\lambda\,\bar\sigma(S)$."""

    lr: float | None = 0.01
    optimizer: str = "adam"
    strength: float = 1.0
    threshold: Schedule = field(default_factory=lambda: find("cubic", 0.1))

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"score": torch.zeros_like(weight, dtype=torch.float32)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return straight_through(mask, aux["score"])

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        score = aux["score"].detach()
        least = keep_top(score, max(round(LEAST * score.numel()), 1))
        return (score.sigmoid() > self.threshold.at(moment.progress)) | least

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor:
        share = self.threshold.at(moment.progress) / self.threshold.final
        total = sum(a["score"].numel() for a in aux.values())
        odds = torch.stack([a["score"].sigmoid().sum() for a in aux.values()])
        return self.strength * share * odds.sum() / total


@method(stage="during", paper="arXiv:2005.07683")
def soft_movement(
    *,
    threshold: float = 0.1,
    strength: float = 1.0,
    lr: float = 0.01,
    inner_optimizer: str = "adam",
    start: float = 0.1,
    end: float = 0.8,
) -> Method:
    r"""Weights stay while $\sigma(S) > \tau$: how much goes, and where, follows from training.

    Scores learn as in movement pruning and are pushed down by ``strength`` times their mean
    $\sigma(S)$. Threshold and push grow together along the cubic schedule. Of each layer at least
    0.5 % stay.

    Args:
        threshold: Final $\tau$.
        strength: $\lambda$ of the push.
        lr: Of the scores.
        inner_optimizer: Of the scores, "adam" or "sgd".
        start, end: Part of training in which the threshold grows.

    Example:
        >>> soft_movement(threshold=0.2).gate.threshold.final
        0.2

    Paper:
        Sanh, Wolf and Rush, NeurIPS 2020.
    """
    curve = find("cubic", threshold, start=start, end=end)
    gate = SoftMovement(lr=lr, optimizer=inner_optimizer, strength=strength, threshold=curve)
    return Method(criterion=None, schedule="cubic", gate=gate)
