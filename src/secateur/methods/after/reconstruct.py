"""Exact least squares on a fixed mask: the best weights that the mask allows."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import problem
from secateur.engine.statistics import Stats
from secateur.engine.target import ROWWISE, Solved, Solver, Target, keep_best
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 24  # of the systems that are solved at once


@method(stage="after", paper="none")
def reconstruct(
    amount: float = 0.5, *, damping: float = 0.01, iterations: int | None = None
) -> Method:
    """Wanda's mask or a given one, and the weights that are best for it.

    Args:
        amount: Fraction removed.
        damping: Added to the Gram matrix's diagonal, relative to its mean.
        iterations: Of conjugate gradients; default: solve exactly.

    Example:
        >>> sorted(reconstruct(0.5).solver.needs)
        ['gram']
    """
    options = {"damping": damping, "iterations": iterations}
    rowwise = ROWWISE if iterations is None else frozenset[str]()  # all rows stop together
    return Method(
        amount, solver=Solver(solve, frozenset({"gram"}), rowwise=rowwise, options=options)
    )


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    damping: float = 0.01,
    iterations: int | None = None,
) -> Solved:
    r"""Minimize $\lVert X W_0^\top - X W^\top \rVert^2$ over the weights that stay.

    Row by row $G_{SS} w_S = (G w_0)_S$, where S are the inputs that stay.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: Usually a mask; without one, Wanda's is taken.
        damping: Added to the diagonal, relative to its mean.
        iterations: Of preconditioned conjugate gradients for all rows at once, from the weights as
            they are; default: exact, by a batch of Cholesky factorizations.
    """
    here = problem(weight, stats, damping)
    scores = here.weight.abs() * here.gram.diagonal().sqrt()
    keep = keep_best(scores, target, per="row")
    aim = here.weight @ here.gram
    if iterations is None:
        solved = exact(here.gram, aim, keep)
    else:
        solved = conjugate_gradients(here.gram, aim, keep, here.weight * keep, iterations)
    return Solved(solved, keep, here.note)


def exact(gram: Tensor, aim: Tensor, keep: Tensor) -> Tensor:
    """Each row's own system, rows in batches; those with fewer inputs are filled up by identity.

    Args:
        gram: ``(inputs, inputs)``, positive definite.
        aim: ``(outputs, inputs)``, right-hand sides.
        keep: ``(outputs, inputs)``, where the solution may differ from zero.
    """
    counts = keep.sum(1)
    width = int(counts.max()) if len(counts) else 0
    result = torch.zeros_like(aim)
    if width == 0:
        return result
    # The positions that stay come first in each row, in their order.
    support = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    inside = torch.arange(width, device=keep.device) < counts[:, None]
    at_once = max(1, _ELEMENTS // width**2)
    for start in range(0, len(aim), at_once):
        rows = slice(start, start + at_once)
        at, real = support[rows], inside[rows]
        systems = gram[at[:, :, None], at[:, None, :]]
        systems *= real[:, :, None] & real[:, None, :]
        systems.diagonal(dim1=1, dim2=2).add_((~real).to(systems.dtype))
        right = aim[rows].gather(1, at) * real
        factor, info = torch.linalg.cholesky_ex(systems)
        if info.any():
            raise ConfigError("a row's system is singular: raise damping=")
        solution = torch.cholesky_solve(right[..., None], factor)[..., 0]
        result[rows] = result[rows].scatter(1, at, solution * real)
    return result


def conjugate_gradients(
    gram: Tensor, aim: Tensor, keep: Tensor, start: Tensor, iterations: int, rtol: float = 1e-4
) -> Tensor:
    """All rows together, each with its own step, projected onto what stays.

    Preconditioned by the diagonal; stops when every row's residual has fallen to ``rtol``.
    """
    scale = 1 / gram.diagonal()
    w = start * keep
    residual = (aim - w @ gram) * keep
    whole = (aim * keep).square().sum(1).clamp(min=1e-30)
    z = residual * scale
    direction = z.clone()
    product = (residual * z).sum(1, keepdim=True)
    for _ in range(iterations):
        if bool((residual.square().sum(1) <= rtol**2 * whole).all()):
            break
        along = direction @ gram
        step = product / (direction * along).sum(1, keepdim=True).clamp(min=1e-30)
        w = w + step * direction
        residual = residual - step * along * keep
        z = residual * scale
        fresh = (residual * z).sum(1, keepdim=True)
        direction = z + fresh / product.clamp(min=1e-30) * direction
        product = fresh
    return w
