"""Wanda: weight magnitude times the norm of the input it meets, compared within each output."""

from __future__ import annotations

from torch import Tensor

from secateur.engine.statistics import Stats
from secateur.engine.target import ROWWISE, Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2306.11695")
def wanda(amount: float = 0.5, *, variant: bool = False) -> Method:
    """Needs a little calibration text and one number an input; weights are not updated.

    Args:
        amount: Fraction removed.
        variant: Let each row lose the same share of its score instead of the same number.

    Example:
        >>> wanda(0.5).solver.data
        True
    """
    rowwise = ROWWISE - {"amount"} if variant else ROWWISE
    return Method(amount, solver=Solver(solve, rowwise=rowwise, options={"variant": variant}))


def solve(weight: Tensor, stats: Stats, target: Target, *, variant: bool = False) -> Solved:
    r"""Remove the lowest $S_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2$ of each row.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``input_norm``.
        target: An amount, a pattern or a mask.
        variant: Give each row an amount of its own: all rows lose the same share of their summed
            score, the share that makes the layer meet the amount.
    """
    scores = weight.abs().float().mul_(stats.input_norm)
    if variant and target.pattern is None and target.keep is None:
        keep = _equal_shares(scores, target)
    else:
        keep = keep_best(scores, target, per="row")
    return Solved(weight * keep, keep)


def _equal_shares(scores: Tensor, target: Target) -> Tensor:
    """Removing by the share of the row's total that goes with a score makes every share equal."""
    order = scores.argsort(dim=1, stable=True)
    cumulated = scores.gather(1, order).double().cumsum(1)
    shares = cumulated / cumulated[:, -1:].clamp(min=1e-300)
    return keep_best(shares.new_empty(scores.shape).scatter_(1, order, shares), target)
