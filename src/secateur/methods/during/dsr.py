"""DSR: one adaptive threshold over all layers; what grows back goes where much has stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


def apportion(total: int, shares: Tensor, room: Tensor) -> Tensor:
    """Divide a number in proportion to shares, exactly, never more than there is room for.

    Args:
        total: At most the sum of ``room``.
        shares: Not negative.
        room: Most that each may get.

    Example:
        >>> apportion(10, torch.tensor([3.0, 1.0, 1.0]), torch.tensor([4, 9, 9]))
        tensor([4, 3, 3])
    """
    given = torch.zeros_like(room)
    while (rest := total - int(given.sum())) > 0:
        open_ = given < room
        weight = torch.where(open_, shares.double().clamp_min(1e-12), 0.0)
        exact = rest * weight / weight.sum()
        more = torch.minimum(exact.floor().long(), room - given)
        if not bool(more.any()):  # less than one each: the largest remainders get one
            more = keep_top(exact.masked_fill(~open_, -1.0), min(rest, int(open_.sum()))).long()
        given = given + more
    return given


@dataclass(frozen=True)
class Reparameterisation(Rule):
    """Every ``every`` steps: what is below H goes, H adapts, as many return at random, at zero."""

    every: int
    share: float
    threshold: float
    tolerance: float
    stop: float

    def start(self, moment: Moment) -> None:
        moment.state["threshold"] = torch.tensor(self.threshold, dtype=torch.float64)

    def after_step(self, moment: Moment) -> None:
        if moment.step % self.every or moment.progress >= self.stop:
            return
        height = float(moment.state["threshold"])
        names = list(moment.masks)
        stay = {}
        for n in names:
            size = moment.parameters[n].abs().masked_fill(~moment.masks[n], -1.0)
            stay[n] = moment.masks[n] & ((size >= height) | keep_top(size, 1))
        left = torch.tensor([int(stay[n].sum()) for n in names])
        kept = sum(int(m.sum()) for m in moment.masks.values())
        gone, wanted = kept - int(left.sum()), self.share * kept
        if gone > (1 + self.tolerance) * wanted:
            moment.state["threshold"] /= 2
        elif gone < (1 - self.tolerance) * wanted:
            moment.state["threshold"] *= 2
        # Free places are those that were so before; the dropped serve only where these run out.
        free = {n: ~moment.masks[n] for n in names}
        room = torch.tensor([int(f.sum()) for f in free.values()])
        if int(room.sum()) < gone:
            free = {n: ~stay[n] for n in names}
            room = torch.tensor([int(f.sum()) for f in free.values()])
        back = apportion(gone, left, room)
        for n, number in zip(names, back.tolist(), strict=True):
            moment.clear(n, ~stay[n])
            drawn = torch.rand(free[n].shape, generator=moment.generator).to(free[n].device)
            moment.masks[n] = stay[n] | keep_top(drawn.masked_fill(~free[n], -1.0), number)


@method(stage="during", paper="arXiv:1902.05967")
def dsr(
    amount: float = 0.9,
    *,
    every: int = 100,
    share: float = 0.05,
    threshold: float = 1e-3,
    tolerance: float = 0.1,
    stop: float = 0.95,
    scope: Any = "er",
) -> Method:
    r"""Dynamic sparse reparameterisation: weights move between layers, their number stays.

    Every ``every`` steps the kept weights with $|w| < H$ go, of all layers; a layer's largest
    stays. With K gone, $H$ halves if $K > (1 + \delta) N_p$ and doubles if $K < (1 - \delta) N_p$.
    As many return at random places, at zero with empty optimizer slots, divided over layers in
    proportion to the weights that stayed, $K R_l / \sum_l R_l$, as far as a layer has room. The
    exchange follows the step, which updates the weights as any other.

    Args:
        amount: Fraction that is absent, from the start.
        every: Steps between two exchanges.
        share: $N_p$, as a fraction of the kept weights.
        threshold: $H$ at first.
        tolerance: $\delta$.
        stop: Part of training after which the masks are fixed.
        scope: Allocation of the first, random mask; "uniform" leaves small last layers next to
            nothing at high sparsity.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> dsr(0.9).rule.threshold
        0.001
    """
    if every < 1 or threshold <= 0 or not 0 < share < 1 or not 0 <= tolerance < 1:
        raise ConfigError(
            f"dsr: every={every}, share={share}, threshold={threshold}, tolerance={tolerance}: "
            "every must be at least 1, share in (0, 1), threshold positive, tolerance in [0, 1)"
        )
    rule = Reparameterisation(every, share, threshold, tolerance, stop)
    return Method(amount, criterion="random", scope=scope, rule=rule)
