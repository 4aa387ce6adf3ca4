"""DSnoT: exchange weights so that each output's mean error shrinks, without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2310.08915")
def dsnot(
    amount: float = 0.5, *, cycles: int = 50, threshold: float = 0.1, power: float = 1.0
) -> Method:
    """Starts from Wanda's mask or a given one; needs means and variances of the inputs.

    Args:
        amount: Fraction removed.
        cycles: At most so many exchanges a row.
        threshold: A row whose expected error is smaller than this is left alone.
        power: Of the variance that candidates for growing are divided by.

    Example:
        >>> sorted(dsnot(0.5).solver.needs)
        []
    """
    options = {"cycles": cycles, "threshold": threshold, "power": power}
    return Method(amount, solver=Solver(solve, options=options))


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    cycles: int = 50,
    threshold: float = 0.1,
    power: float = 1.0,
) -> Solved:
    r"""Exchange weights of a row while its expected error $\epsilon$ shrinks.

    $\epsilon = \sum_{j \text{ pruned}} W_j E[x_j]$. What comes back is the pruned weight with the
    largest $W_j E[x_j] / \mathrm{Var}(x_j)^p$ of the sign of $\epsilon$; what goes is the kept
    weight with the smallest $|W_j| \lVert X_j \rVert$ that draws $\epsilon$ to zero as well. An
    exchange that does not make $|\epsilon|$ smaller ends the row. A pattern exchanges within the
    group of the weight that comes back.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``input_norm`` and ``input_mean``.
        target: A mask to start from; without one, Wanda's.
        cycles: At most so many exchanges a row.
        threshold: Of the error that is left alone, in units of the output.
        power: p.
    """
    w = weight.float()
    mean, norm = stats.input_mean.float(), stats.input_norm.float()
    variance = (norm.square() - mean.square()).clamp(min=1e-12)
    scores = w.abs() * norm
    keep = keep_best(scores, target, per="row").clone()
    group = target.pattern[1] if target.pattern is not None else w.shape[1]
    state = _Rows(w * mean, scores, variance**power, keep)
    for _ in range(cycles):
        if not state.exchange(threshold, group):
            break
    return Solved(weight * keep, keep)


@dataclass
class _Rows:
    """All rows of a matrix; ``keep`` is changed in place.

    Attributes:
        part: What each weight gives to the mean output.
        scores: Wanda's.
        spread: What candidates for growing are divided by.
        keep: The mask.
    """

    part: Tensor
    scores: Tensor
    spread: Tensor
    keep: Tensor

    def exchange(self, threshold: float, group: int) -> bool:
        """One exchange in every row that it helps; False if there is none."""
        error = (self.part * ~self.keep).sum(1)
        sign = error.sign()[:, None]
        growing = torch.where(self.keep, -torch.inf, sign * self.part / self.spread)
        gain, back = growing.max(1)
        # Pruning q adds part_q to the error: it must be of the other sign.
        allowed = self.keep & (sign * self.part < 0)
        if group < self.keep.shape[1]:
            groups = torch.arange(self.keep.shape[1], device=back.device) // group
            allowed &= groups == (back // group)[:, None]
        cost, out = torch.where(allowed, self.scores, torch.inf).min(1)
        rows = torch.arange(len(back), device=back.device)
        after = error - self.part[rows, back] + self.part[rows, out]
        helps = (error.abs() >= threshold) & (gain > 0) & cost.isfinite()
        helps &= after.abs() < error.abs()
        rows, back, out = rows[helps], back[helps], out[helps]
        self.keep[rows, back] = True
        self.keep[rows, out] = False
        return len(rows) > 0
