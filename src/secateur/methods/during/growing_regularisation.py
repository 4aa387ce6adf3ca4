"""Growing regularisation: what is to go is pushed ever harder towards zero before it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.granularity.choose import choose
from secateur.methods.registry import Method, method


@dataclass(frozen=True)
class Growing(Rule):
    r"""Adds $\lambda(t)\,w$ to the gradients of what is to go, and removes it when that is over.

    $\lambda$ rises from 0 to ``ceiling``, linearly in steps of ``every``, until ``grow``; at
    ``end`` the masks become effective. If ``pick`` is above 0, all weights are pushed until then,
    up to ``common``, and what is smallest at that time is what goes.
    """

    every: int = 5
    ceiling: float = 1.0
    grow: float = 0.5
    end: float = 0.6
    pick: float = 0.0
    common: float = 0.01
    scope: Any = "uniform"
    scheduled = True

    def start(self, moment: Moment) -> None:
        if not self.pick:
            self._doom(moment)
        moment.masks = {n: torch.ones_like(m) for n, m in moment.masks.items()}

    def _doom(self, moment: Moment) -> None:
        moment.state.update({f"stays.{n}": m.clone() for n, m in moment.masks.items()})

    def strength(self, step: int, steps: int) -> float:
        r"""$\lambda$ before the step of this number."""
        progress = step // self.every * self.every / max(steps, 1)
        if progress < self.pick:
            return self.common * progress / self.pick
        return self.ceiling * min(progress / self.grow, 1.0)

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        if moment.progress >= self.pick and f"stays.{next(iter(moment.masks))}" not in moment.state:
            sizes = {n: p.detach().abs() for n, p in moment.parameters.items()}
            chosen = choose(sizes, moment.units, moment.target, self.scope)
            whole = moment.masks
            moment.masks = {n: chosen.get(n, m).contiguous() for n, m in whole.items()}
            self._doom(moment)
            moment.masks = whole
        if moment.progress >= self.end:
            self.finish(moment)
            return
        by = self.strength(moment.step, moment.steps)
        for n, p in moment.parameters.items():
            stays = moment.state.get(f"stays.{n}")
            if p.grad is not None:
                p.grad.add_(p if stays is None else p * ~stays, alpha=by)

    def finish(self, moment: Moment) -> None:
        known = {n: moment.state.get(f"stays.{n}", m) for n, m in moment.masks.items()}
        moment.masks = {n: m.clone() for n, m in known.items()}


@method(stage="during", paper="arXiv:2012.09243")
def growing_regularisation(
    amount: float = 0.5,
    *,
    every: int = 5,
    ceiling: float = 1.0,
    grow: float = 0.5,
    end: float = 0.6,
    pick: float = 0.0,
    common: float = 0.01,
    scope: Any = "uniform",
    granularity: Any = "channel",
) -> Method:
    r"""Of each layer the filters of smallest L1 norm get a weight decay that grows until they go.

    With $\lambda$ rising while the network trains, the others take over before anything is
    removed; then the rest of the run trains what is left. With ``pick`` 0 the choice is made before
    the first step (GReg-1); above 0 all weights are pushed alike until then, which drives them
    apart, and the choice follows (GReg-2).

    Args:
        amount: Fraction of the filters of each layer.
        every: Steps between two increments.
        ceiling: Final $\lambda$, of the gradient; times the learning rate it should stay below 1.
        grow: Part of training after which $\lambda$ is constant.
        end: Part of training after which the chosen are zero.
        pick: Part of training before the choice.
        common: $\lambda$ of all weights just before the choice.
        scope: Allocation over layers.
        granularity: "channel" goes with all that is coupled, "row" is one layer's filter.

    Raises:
        ConfigError: Options out of order or range.

    Example:
        >>> rule = growing_regularisation(0.5, grow=0.5).rule
        >>> [rule.strength(step, 100) for step in (0, 4, 5, 50, 90)]
        [0.0, 0.0, 0.1, 1.0, 1.0]
    """
    if every < 1 or min(ceiling, common) < 0 or not 0 <= pick < end or not 0 < grow <= end <= 1:
        raise ConfigError(
            f"growing_regularisation: every={every}, ceiling={ceiling}, grow={grow}, end={end}, "
            f"pick={pick}, common={common}: every must be at least 1, 0 <= pick < end, "
            "0 < grow <= end <= 1, ceiling and common not negative"
        )
    rule = Growing(every, ceiling, grow, end, pick, common, scope)
    return Method(amount, criterion="l1", scope=scope, granularity=granularity, rule=rule)
