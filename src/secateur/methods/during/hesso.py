"""HESSO: groups chosen by a mix of saliencies fade to exactly zero while the network trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secateur.engine.seams import Moment, Rule, Tensors
from secateur.errors import ConfigError
from secateur.granularity.choose import keep_units
from secateur.methods.registry import Method, method


def saliency(moment: Moment) -> Tensors:
    r"""The mean of five scores of every unit, each divided by its L2 norm over all units.

    With weights $x$ and gradients $g$ of a unit of $n$ elements: $\lVert x \rVert$,
    $\lVert x \rVert / n$, $\cos(x, g) + 1$, $|\langle x, g \rangle|$ and
    $\frac12 \langle x, g \rangle^2$.

    Returns:
        Space -> scores, higher = keep.
    """
    weights = {n: p.detach().float() for n, p in moment.parameters.items()}
    gradients = {
        n: torch.zeros_like(weights[n]) if p.grad is None else p.grad.detach().float()
        for n, p in moment.parameters.items()
    }

    def sums(a: Tensors, b: Tensors) -> Tensors:
        means = moment.units.reduce({n: a[n] * b[n] for n in a})
        return {s: m * moment.units.sizes[s] for s, m in means.items()}

    inner, norms = sums(weights, gradients), sums(weights, weights)
    slopes = sums(gradients, gradients)
    spaces = list(norms)
    lengths = [len(norms[s]) for s in spaces]
    product, square = (torch.cat([t[s] for s in spaces]) for t in (inner, norms))
    size = torch.cat([torch.full_like(norms[s], moment.units.sizes[s]) for s in spaces])
    steep = torch.cat([slopes[s] for s in spaces])
    norm = square.sqrt()
    scores = torch.stack([
        norm,
        norm / size,
        product / (norm * steep.sqrt()).clamp(min=1e-12) + 1,
        product.abs(),
        product.square() / 2,
    ])  # fmt: skip
    mixed = (scores / scores.norm(dim=1, keepdim=True).clamp(min=1e-12)).mean(0)
    return dict(zip(spaces, mixed.split(lengths), strict=True))


@dataclass(frozen=True)
class Fading(Rule):
    """In each period the lowest of what is left are chosen, and reach zero at its end."""

    start_at: float
    end: float
    periods: int
    scope: Any
    scheduled = True

    def _place(self, step: int, steps: int) -> tuple[int, int, int]:
        """Period, step within it and its length, of the step of this number; -1 before the first.

        Periods differ by a step where their number does not divide the steps.
        """
        first, last = round(self.start_at * steps), max(round(self.end * steps), 1)
        edges = [first + (last - first) * k // self.periods for k in range(self.periods + 1)]
        period = sum(step >= e for e in edges) - 1
        if not 0 <= period < self.periods:
            return -1, 0, 0
        return period, step - edges[period], edges[period + 1] - edges[period]

    def before_step(self, moment: Moment) -> None:
        period, inside, _ = self._place(moment.step, moment.steps)
        if period < 0 or inside:
            return
        scores = saliency(moment)
        for space, score in scores.items():  # what is gone is first to go
            gone = ~moment.state.get(f"stays.{space}", torch.ones_like(score)).bool()
            scores[space] = score.masked_fill(gone, -torch.inf)
        amount = moment.target * (period + 1) / self.periods
        for space, stays in keep_units(scores, moment.units, amount, self.scope).items():
            moment.state[f"stays.{space}"] = stays.float()

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        period, inside, length = self._place(moment.step - 1, moment.steps)
        if period < 0:
            return
        stays = {s: moment.state[f"stays.{s}"] > 0 for s in moment.units.counts
                 if f"stays.{s}" in moment.state}  # fmt: skip
        left = (length - inside - 1) / (length - inside)
        for name, mask in moment.units.spread(stays).items():
            p = moment.parameters[name]
            p.mul_(torch.where(mask, 1.0, left).to(p.dtype))
        if inside == length - 1:
            moment.keep(stays)


@method(stage="during", paper="arXiv:2409.09085")
def hesso(
    amount: float = 0.5,
    *,
    start: float = 0.1,
    end: float = 0.6,
    periods: int = 1,
    scope: Any = "global",
    granularity: Any = "channel",
) -> Method:
    r"""Hybrid efficient structured sparse optimisation, without a strength to tune.

    At the start of each of ``periods`` the units of lowest saliency among those left are chosen;
    after each of its K optimizer steps they are multiplied by $\frac{K - t - 1}{K - t}$, so that
    without gradients they would fall linearly, and at its end they are exactly zero and stay so.

    Args:
        amount: Fraction of the units.
        start, end: Part of training in which units fade.
        periods: How often units are chosen.
        scope: Who competes with whom; the paper's is global.
        granularity: What fades as one.

    Raises:
        ConfigError: Options out of order or range.

    Example:
        >>> hesso(0.5).rule.periods
        1
    """
    if periods < 1 or not 0 <= start < end <= 1:
        raise ConfigError(
            f"hesso: start={start}, end={end}, periods={periods}: 0 <= start < end <= 1 and "
            "periods at least 1"
        )
    rule = Fading(start, end, periods, scope)
    return Method(amount, criterion=None, scope=scope, granularity=granularity, rule=rule)
