"""ExactOBS: remove one weight of a row at a time, always the one whose loss is least by then."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import problem
from secateur.engine.masks import keep_top
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.after.reconstruct import exact
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 24  # of the inverses that are held at once: one a row
_LAZY = 32  # removals of a row that are taken off its inverse in one go


@method(stage="after", paper="arXiv:2208.11580")
def exact_obs(amount: float = 0.5, *, damping: float = 0.01) -> Method:
    """The greedy optimum of layer-wise pruning, for small layers.

    Time grows with outputs times inputs cubed.

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

    Removing weight p of a row raises the error by $w_p^2 / (2 [G^{-1}]_{pp})$; the others become
    $w - \frac{w_p}{[G^{-1}]_{pp}} G^{-1}_{:,p}$ and $G^{-1}$ loses row and column p. Rows do not
    touch each other: each is emptied once, and as many first removals of each are taken as have the
    smallest rises over the layer. The weights that all these updates lead to are the least squares
    on what is left, which are solved for.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount, a pattern or a mask.
        damping: Added to the diagonal, relative to its mean.
    """
    here = problem(weight, stats, damping)
    if target.keep is not None:
        keep = target.keep
    else:
        if target.pattern is not None:
            keep_best(here.weight, target)  # says so if the inputs are no multiple of the group
        rises, order = removals(here.weight, torch.cholesky_inverse(here.cholesky), target.pattern)
        if target.pattern is not None:
            gone = rises.isfinite()
        else:
            # A later removal never comes before an earlier one of its row.
            rises = rises.cummax(1).values
            if target.rows is not None:  # of the size of weights, as a rise is of their squares
                rises = rises * target.rows.to(rises).square()[:, None]
            gone = keep_top(-rises, round(target.amount * rises.numel()))
        keep = torch.ones_like(gone).scatter_(1, order, ~gone)
    return Solved(exact(here.gram, here.weight @ here.gram, keep), keep, here.note)


def removals(
    weight: Tensor, inverse: Tensor, pattern: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """In which order each row loses its weights, and by how much each removal raises the error.

    Args:
        weight: ``(outputs, inputs)``.
        inverse: Of the Gram matrix.
        pattern: No more than n of every m go; the rises of what stays are infinite.

    Returns:
        Rises and columns, ``(outputs, inputs)``, first removals first.
    """
    inputs = weight.shape[1]
    rises = torch.full_like(weight, torch.inf)
    order = torch.zeros_like(weight, dtype=torch.long)
    at_once = max(1, _ELEMENTS // inputs**2)
    for start in range(0, len(weight), at_once):
        rows = slice(start, start + at_once)
        _empty(weight[rows].clone(), inverse, pattern, rises[rows], order[rows])
    return rises, order


def _empty(
    w: Tensor, inverse: Tensor, pattern: tuple[int, int] | None, rises: Tensor, order: Tensor
) -> None:
    """Some rows at once, into ``rises`` and ``order``.

    What removals take off the inverses is kept as columns and taken off a few at a time; columns
    that have gone are dropped now and then.
    """
    count, inputs = w.shape
    n, m = pattern or (inputs, inputs)
    h = inverse.expand(count, inputs, inputs).clone()
    diagonal = h.diagonal(dim1=1, dim2=2).clone()
    at = torch.arange(inputs, device=w.device).expand(count, inputs)  # which columns w and h have
    gone = torch.zeros_like(w, dtype=torch.bool)
    lost = torch.zeros(count, inputs // m, dtype=torch.long, device=w.device)  # of each group
    row = torch.arange(count, device=w.device)
    taken = h.new_zeros(count, inputs, _LAZY)
    steps = inputs // m * n
    for step in range(steps):
        closed = gone | (lost.gather(1, at // m) >= n) if pattern else gone
        rise, i = (
            (w.square() / (2 * diagonal.clamp(min=1e-30))).masked_fill(closed, torch.inf).min(1)
        )
        column = at[row, i]
        rises[:, step], order[:, step] = rise, column
        lost[row, column // m] += 1
        gone[row, i] = True
        late = step % _LAZY
        along = h[row, :, i] - (taken[:, :, :late] @ taken[row, i, :late, None])[..., 0]
        along = along / along[row, i, None].clamp(min=1e-30).sqrt()
        w -= w[row, i, None] / along[row, i, None] * along
        diagonal -= along.square()
        taken[:, :, late] = along
        if late == _LAZY - 1:
            h.baddbmm_(taken, taken.mT, alpha=-1)
            if 4 * (inputs - step - 1) <= 3 * w.shape[1]:
                left = gone.to(torch.uint8).argsort(dim=1, stable=True)[:, : inputs - step - 1]
                w, at, gone, diagonal = (t.gather(1, left) for t in (w, at, gone, diagonal))
                h = h[row[:, None, None], left[:, :, None], left[:, None, :]]
                taken = h.new_zeros(*w.shape, _LAZY)
    if steps < inputs:  # what a pattern leaves, in any order
        left = gone.to(torch.uint8).argsort(dim=1, stable=True)[:, : inputs - steps]
        order[:, steps:] = at.gather(1, left)
