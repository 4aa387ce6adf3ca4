"""ADMM: alternate between the best dense weights near a sparse copy and the best sparse copy."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from secateur.engine.gram import scaled_problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2401.02938")
def admm(
    amount: float = 0.5, *, iterations: int = 20, damping: float = 0.1, rho: float = 1.0
) -> Method:
    """Chooses and updates weights together; a matrix product an iteration, no loop over columns.

    Args:
        amount: Fraction removed.
        iterations: In the first three quarters the mask is chosen anew each time, removing more
            and more along a cubic schedule.
        damping: Added to the diagonal of the scaled Gram matrix, which is one.
        rho: How strongly the two copies are drawn together.

    Example:
        >>> sorted(admm(0.5).solver.needs)
        ['gram']
    """
    options = {"iterations": iterations, "damping": damping, "rho": rho}
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options=options))


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    iterations: int = 20,
    damping: float = 0.1,
    rho: float = 1.0,
) -> Solved:
    r"""Minimize $\lVert X W_0^\top - X W^\top \rVert^2$ subject to W = Z, Z sparse.

    On inputs that are scaled to unit norm, where the magnitude of a weight is Wanda's score:
    $Z = P(W + U)$, $U \leftarrow U + W - Z$, $W = (G + \rho I)^{-1}(G W_0 + \rho (Z - U))$, where
    P keeps the largest weights of the layer (a pattern: of each group).

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount, a pattern or a mask.
        iterations: In the first three quarters the mask is chosen anew; a pattern is full from
            the start.
        damping: Added to the diagonal of the scaled Gram matrix.
        rho: How strongly W and Z are drawn together.
    """
    here = scaled_problem(weight, stats, damping)
    gram = here.gram
    w = start = here.weight
    drawn = gram + rho * torch.eye(len(gram), device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(drawn))
    aim = start @ gram
    u = torch.zeros_like(w)
    keep = torch.ones_like(w, dtype=torch.bool)
    choosing = max(1, iterations * 3 // 4)
    for step in range(iterations):
        if step < choosing:
            share = 1 - (1 - (step + 1) / choosing) ** 3
            keep = keep_best((w + u).abs(), replace(target, amount=target.amount * share))
        z = (w + u) * keep
        u += w - z
        w = (aim + rho * (z - u)) @ inverse
    return Solved((w + u) * keep / here.scale, keep, here.note)
