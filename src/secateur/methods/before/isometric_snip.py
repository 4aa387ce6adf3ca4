"""Isometric SNIP: orthogonal weights, SNIP, and an approximate isometry of what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secateur.engine.isometry import orthogonal, repair
from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@torch.no_grad()
def make_orthogonal(moment: Moment) -> None:
    """Give all weights orthogonal or delta-orthogonal values."""
    for p in moment.weights():
        p.copy_(orthogonal(p, moment.generator))


@dataclass(frozen=True)
class Repaired(Rule):
    """Once masks are chosen, brings each layer near an isometry again."""

    steps: int
    lr: float

    @torch.no_grad()
    def start(self, moment: Moment) -> None:
        weights = {n: p for n, p in moment.parameters.items() if p.dim() > 1}
        for name, better in repair(weights, moment.masks, steps=self.steps, lr=self.lr).items():
            weights[name].copy_(better)


@method(stage="before", paper="arXiv:1906.06307")
def isometric_snip(
    amount: float = 0.9,
    *,
    criterion: Any = "saliency",
    repair_steps: int = 100,
    lr: float = 0.03,
    granularity: Any = "element",
) -> Method:
    r"""SNIP on a network whose layers keep lengths, before masking and again after it.

    Orthogonal layers have Jacobians with singular values near 1, so that the gradients that SNIP
    compares are of one scale in all layers; masking breaks that, and
    $\min_W \lVert (C \odot W)^\top (C \odot W) - I \rVert_F^2$ mends it without data. The weights
    that the model came with are replaced; not where ``attach(state=)`` takes a run up again.

    Args:
        amount: Fraction removed.
        criterion: Of elements; "saliency" is SNIP's.
        repair_steps, lr: Of the repair by Adam; 0 steps leave it out.
        granularity: What is kept or removed as one.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> isometric_snip(0.9).rule.steps
        100
    """
    if repair_steps < 0 or lr <= 0:
        raise ConfigError(
            f"isometric_snip: repair_steps={repair_steps}, lr={lr}: give at least 0 steps "
            "and a positive lr"
        )
    return Method(
        amount,
        criterion=criterion,
        scope="global",
        granularity=granularity,
        transform=make_orthogonal,
        rule=Repaired(repair_steps, lr) if repair_steps else None,
    )
