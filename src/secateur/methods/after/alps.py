"""ALPS: ADMM whose two copies are drawn together ever more, then conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import scaled_problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.after.reconstruct import conjugate_gradients
from secateur.methods.registry import Method, method

# How much rho grows, by the share of the kept weights that changed places since the last look.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_EVERY = 3
_LEAST = 1e-3  # a rho at which the copies are free of each other: a mask that stands still is final


@method(stage="after", paper="arXiv:2406.07831")
def alps(
    amount: float = 0.5, *, iterations: int = 300, damping: float = 0.01, rho: float = 0.1
) -> Method:
    """Chooses and updates weights together; needs one eigendecomposition a layer.

    Args:
        amount: Fraction removed.
        iterations: At most.
        damping: Added to the diagonal of the scaled Gram matrix, which is one.
        rho: How strongly the two copies are drawn together at first.

    Example:
        >>> sorted(alps(0.5).solver.needs)
        ['gram']
    """
    options = {"iterations": iterations, "damping": damping, "rho": rho}
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options=options))


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    iterations: int = 300,
    damping: float = 0.01,
    rho: float = 0.1,
) -> Solved:
    r"""Minimize $\lVert X W_0^\top - X W^\top \rVert^2$ subject to W = D, D sparse.

    $W = (G + \rho I)^{-1}(G W_0 + \rho D - V)$, $D = P(W + V / \rho)$,
    $V \leftarrow V + \rho (W - D)$ on scaled inputs. Every three iterations rho grows, more where
    more of the mask has changed, until the mask stands still; then its weights are improved by
    ten iterations of conjugate gradients.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount (of the layer), a pattern or a mask.
        iterations: At most.
        damping: Added to the diagonal of the scaled Gram matrix.
        rho: The first one; divided by five where the mask stands still from the start.
    """
    here = scaled_problem(weight, stats, damping)
    values, vectors = torch.linalg.eigh(here.gram.double())
    values, vectors = values.to(here.gram), vectors.to(here.gram)
    aim = here.weight @ here.gram
    aim_turned = aim @ vectors  # in the basis of the eigenvectors every inverse is a division
    d = here.weight
    v = torch.zeros_like(d)
    keep = keep_best(d.abs(), target)
    looked_at, grown = keep, False
    for step in range(iterations):
        w = ((aim_turned + (rho * d - v) @ vectors) / (values + rho)) @ vectors.T
        there = w + v / rho
        keep = keep_best(there.abs(), target)
        d = there * keep
        v += rho * (w - d)
        if (step + 1) % _EVERY:
            continue
        changed = float((keep & ~looked_at).sum()) / max(int(keep.sum()), 1)
        looked_at = keep
        factor = next((f for least, f in _GROWTH if changed > least), 1.0)
        if changed > 0 and not (step > 30 and changed < 3e-4):
            rho *= factor
            grown = True
        elif grown or rho < _LEAST:
            break
        else:
            rho /= 5
    solved = conjugate_gradients(here.gram, aim, keep, d, 10)
    return Solved(solved / here.scale, keep, here.note)
