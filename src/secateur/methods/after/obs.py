"""OBS: weights go whose loss the others can best make up for, all scored at once."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.after.reconstruct import exact
from secateur.methods.registry import Method, method


@method(stage="after", paper="Hassibi and Stork 1992; arXiv:1705.07565")
def obs(amount: float = 0.5, *, damping: float = 0.01) -> Method:
    """Layer by layer, with the Gram matrix of the inputs as the Hessian of each output.

    One look for all removals, as in layer-wise OBS; ``exact_obs`` looks again after each.

    Args:
        amount: Fraction removed.
        damping: Added to the Gram matrix's diagonal, relative to its mean.

    Example:
        >>> sorted(obs(0.5).solver.needs)
        ['gram']
    """
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options={"damping": damping}))


def solve(weight: Tensor, stats: Stats, target: Target, *, damping: float = 0.01) -> Solved:
    r"""Score $\rho_i = w_i^2 / (2 [G^{-1}]_{ii})$, the rise of the error with the best update.

    The lowest go, and what stays takes the values that make up for all of them together: the least
    squares solution, which the paper's update is for a single weight.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount, a pattern or a mask.
        damping: Added to the diagonal, relative to its mean.
    """
    here = problem(weight, stats, damping)
    inverse = torch.cholesky_inverse(here.cholesky)
    keep = keep_best(here.weight.abs() / (2 * inverse.diagonal()).sqrt(), target)
    return Solved(exact(here.gram, here.weight @ here.gram, keep), keep, here.note)
