"""Taylor-FO: channels that the loss would hardly miss go a few at a time while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Moment, Rule, Tensors
from secateur.errors import ConfigError
from secateur.granularity.choose import keep_units
from secateur.methods.registry import Method, method
from secateur.schedule.registry import Schedule, find


def gate_gradients(moment: Moment) -> Tensors:
    r"""$\partial L/\partial z$ of a factor $z = 1$ behind the last layer that makes each unit.

    Behind a batch norm it is $\gamma g_\gamma + \beta g_\beta$, behind a layer without one
    $\langle w, g_w \rangle + b\,g_b$: nothing beyond the gradients at hand is needed.

    Returns:
        Space -> ``(units,)``, signed; a unit made in several places gets the sum.
    """
    products = {
        n: torch.zeros_like(p, dtype=torch.float32)
        if p.grad is None
        else p.detach().float() * p.grad.detach().float()
        for n, p in moment.parameters.items()
    }
    return moment.units.gathered(products)


@dataclass(frozen=True)
class Accumulated(Rule):
    """Squares of gate gradients, averaged between two looks, then by a moving average."""

    schedule: Schedule
    every: int
    momentum: float
    scope: str
    scheduled = True

    def before_step(self, moment: Moment) -> None:
        state, step = moment.state, moment.step + 1
        if "reached" in state:
            return
        for space, gradient in gate_gradients(moment).items():
            state[f"sum.{space}"] = gradient.square() + state.get(f"sum.{space}", 0.0)
        state["seen"] = state.get("seen", torch.zeros(())) + 1
        if step % self.every and step != moment.steps:
            return
        seen = state.pop("seen")
        scores: dict[str, Tensor] = {}
        for space in [n[4:] for n in state if n.startswith("sum.")]:
            mean = state.pop(f"sum.{space}") / seen
            before = state.get(f"score.{space}")
            scores[space] = (
                mean if before is None else self.momentum * before + (1 - self.momentum) * mean
            )
            state[f"score.{space}"] = scores[space]
            gone = ~state.get(f"stays.{space}", torch.ones_like(mean)).bool()
            scores[space] = scores[space].masked_fill(gone, -torch.inf)
        amount = self.schedule.at(step / moment.steps)
        stays = keep_units(scores, moment.units, amount, self.scope)
        state.update({f"stays.{n}": k.float() for n, k in stays.items()})
        moment.keep(stays)
        if amount >= self.schedule.final:
            state["reached"] = torch.tensor(True)


@method(stage="during", paper="arXiv:1906.10771")
def taylor_fo(
    amount: float = 0.5,
    *,
    every: int = 30,
    momentum: float = 0.9,
    start: float = 0.0,
    end: float = 0.8,
    scope: str = "global",
) -> Method:
    r"""Every ``every`` steps the channels of lowest $(\partial L/\partial z)^2$ go, for good.

    The squares are averaged over the batches between two looks, and over looks with ``momentum``.
    The amount grows linearly; the gradients are those of training itself, so it costs next to
    nothing. A channel that several layers make, as in a residual stream, counts once.

    Args:
        amount: Fraction of the channels at the end.
        every: Steps between two looks; the paper's is 30.
        momentum: Of the scores.
        start, end: Part of training in which channels go.
        scope: Who competes with whom; the paper's is global.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> taylor_fo(0.5).rule.every
        30
    """
    if every < 1 or not 0 <= momentum < 1:
        raise ConfigError(
            f"taylor_fo: every={every}, momentum={momentum}: every must be at least 1, momentum in "
            "[0, 1)"
        )
    rule = Accumulated(find("linear", amount, start=start, end=end), every, momentum, scope)
    return Method(amount, criterion=None, granularity="channel", rule=rule)
