"""OBS: remove the weight whose loss the others can best make up for, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import problem
from secateur.engine.masks import keep_top
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.after.reconstruct import exact
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 24  # of the inverses that are held at once


@method(stage="after", paper="Hassibi and Stork 1992; arXiv:1705.07565; arXiv:2208.11580")
def obs(amount: float = 0.5, *, greedy: bool = True, damping: float = 0.01) -> Method:
    """Layer by layer, with the Gram matrix of the inputs as the Hessian of each output.

    Args:
        amount: Fraction removed.
        greedy: After each removal the scores of the row are those of the weights that are left
            (ExactOBS; time grows with outputs times inputs cubed: for small layers). False scores
            once (layer-wise OBS).
        damping: Added to the Gram matrix's diagonal, relative to its mean.

    Example:
        >>> sorted(obs(0.5).solver.needs)
        ['gram']
    """
    options = {"greedy": greedy, "damping": damping}
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options=options))


def solve(
    weight: Tensor, stats: Stats, target: Target, *, greedy: bool = True, damping: float = 0.01
) -> Solved:
    r"""Score $\rho_i = w_i^2 / (2 [G^{-1}]_{ii})$, the rise of the error with the best update.

    The lowest goes, the others of its row take $\delta w = -w_i / [G^{-1}]_{ii}\; G^{-1} e_i$, and
    $G^{-1}$ loses row and column $i$. Rows do not touch each other: each is emptied once, and as
    many first removals of each are taken as have the smallest rises over the layer. The weights
    that all these updates lead to are the least squares on what is left, which are solved for.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount, a pattern or a mask.
        greedy: See ``obs``.
        damping: Added to the diagonal, relative to its mean.
    """
    here = problem(weight, stats, damping)
    inverse = torch.cholesky_inverse(here.cholesky)
    if greedy and target.keep is None:
        rises, order = removals(here.weight, inverse, target.pattern)
        if target.pattern is not None:
            gone = rises.isfinite()
        else:
            # A later removal never comes before an earlier one of its row.
            rises = rises.cummax(1).values
            if target.rows is not None:  # of the size of weights, as a rise is of their squares
                rises = rises * target.rows.to(rises).square()[:, None]
            gone = keep_top(-rises, round(target.amount * rises.numel()))
        keep = torch.ones_like(gone).scatter_(1, order, ~gone)
    else:
        keep = keep_best(here.weight.abs() / (2 * inverse.diagonal()).sqrt(), target)
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
    rises, order = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.long)
    at_once = max(1, _ELEMENTS // inputs**2)
    for start in range(0, len(weight), at_once):
        w = weight[start : start + at_once].clone()
        h = inverse.expand(len(w), inputs, inputs).clone()
        row = torch.arange(len(w), device=w.device)
        gone = torch.zeros_like(w, dtype=torch.bool)
        for step in range(inputs):
            diagonal = h.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
            scores = (w.square() / (2 * diagonal)).masked_fill(gone, torch.inf)
            if pattern is not None:
                n, m = pattern
                full = gone.view(len(w), -1, m).sum(2) >= n
                scores = scores.masked_fill(full.repeat_interleave(m, 1), torch.inf)
            rise, i = scores.min(1)
            stays = rise.isinf()  # only where a pattern is full: name some weight that is left
            i = torch.where(stays, (~gone).to(torch.uint8).argmax(1), i)
            rises[start + row, step], order[start + row, step] = rise, i
            column, pivot = h[row, :, i], diagonal[row, i]
            moved = torch.where(stays, 0.0, w[row, i] / pivot)
            w -= moved[:, None] * column
            h -= column[:, :, None] * (column / pivot[:, None] * ~stays[:, None])[:, None, :]
            gone[row, i] = True
            w = w.masked_fill(gone, 0)
    return rises, order
