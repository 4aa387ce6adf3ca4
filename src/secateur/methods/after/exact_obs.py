"""ExactOBS: remove one weight of a row at a time, always the one whose loss is least by then."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import Problem, problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.after.reconstruct import exact
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 24  # of the inverses that are held at once: one a row


@method(stage="after", paper="arXiv:2208.11580")
def exact_obs(amount: float = 0.5, *, damping: float = 0.01) -> Method:
    """The greedy optimum of layer-wise pruning; time grows with the cube of the inputs, each row.

    Args:
        amount: Fraction removed.
        damping: Added to the Gram matrix's diagonal, relative to its mean.

    Example:
        >>> sorted(exact_obs(0.5).solver.needs)
        ['gram']
    """
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options={"damping": damping}))


def solve(weight: Tensor, stats: Stats, target: Target, *, damping: float = 0.01) -> Solved:
    r"""Optimal brain surgery, exactly: weight by weight within rows, then rows against each other.

    Removing weight p of a row costs $w_p^2 / [H^{-1}]_{pp}$; the others become
    $w - \frac{w_p}{[H^{-1}]_{pp}} H^{-1}_{:,p}$ and $H^{-1}$ loses row and column p. How many go of
    each row follows from all rows' costs together, as each row's rise (a pattern: as many of each
    group). The weights that stay are then the least squares solution, which is what the updates
    amount to.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount, a pattern or a mask.
        damping: Added to the diagonal, relative to its mean.
    """
    here = problem(weight, stats, damping)
    keep = target.keep if target.keep is not None else _chosen(here, target)
    return Solved(exact(here.gram, here.weight @ here.gram, keep), keep, here.note)


def _chosen(here: Problem, target: Target) -> Tensor:
    columns = here.weight.shape[1]
    # A weight's cost is that of all that went before it too, so that rows lose in their order.
    cost = torch.empty_like(here.weight)
    at_once = max(1, _ELEMENTS // columns**2)
    inverse = torch.cholesky_inverse(here.cholesky)
    for start in range(0, len(here.weight), at_once):
        rows = slice(start, start + at_once)
        cost[rows] = _costs(here.weight[rows].clone(), inverse, target)
    if target.pattern is not None:
        return cost == torch.inf
    return keep_best(cost.sqrt(), target)


def _costs(w: Tensor, inverse: Tensor, target: Target) -> Tensor:
    """The loss at which each weight goes; infinite for those that a full group keeps."""
    rows, columns = w.shape
    inverse = inverse.expand(rows, -1, -1).clone()
    cost = torch.full_like(w, torch.inf)
    open_ = torch.ones_like(w, dtype=torch.bool)
    gone, group = target.pattern if target.pattern is not None else (columns, columns)
    if columns % group:
        keep_best(w, target)  # says what is wrong
    row = torch.arange(rows, device=w.device)
    total = w.new_zeros(rows)
    for _ in range(columns * gone // group):
        diagonal = inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
        loss = torch.where(open_, w.square() / diagonal, torch.inf)
        lost, p = loss.min(1)
        total = total + lost
        cost[row, p] = total
        open_[row, p] = False
        column = inverse[row, :, p]
        w -= (w[row, p] / diagonal[row, p])[:, None] * column
        inverse -= column[:, :, None] * (column / diagonal[row, p, None])[:, None, :]
        if target.pattern is not None:
            full = ~open_.view(rows, -1, group)[row, p // group]
            done = full.sum(1) >= gone
            open_.view(rows, -1, group)[row[done], p[done] // group] = False
    return cost
