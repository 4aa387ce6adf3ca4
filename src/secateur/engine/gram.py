"""Gram matrices made invertible: dead inputs, damping that grows until Cholesky succeeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.engine.statistics import Stats
from secateur.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One layer's least squares problem: min over w of (w - w0) G (w - w0)'.

    Attributes:
        weight: ``(outputs, inputs)`` float32, zero at inputs that are always zero.
        gram: ``(inputs, inputs)`` float32 with damping, positive definite.
        cholesky: Its lower factor.
        note: What had to be done beyond the usual damping; empty if nothing.
        scale: Of each input; its weights were multiplied by it, and have to be divided again.
    """

    weight: Tensor
    gram: Tensor
    cholesky: Tensor
    note: str = ""
    scale: Tensor | float = 1.0


def problem(weight: Tensor, stats: Stats, damping: float = 0.01) -> Problem:
    r"""$G + \lambda \bar g I$, where $\bar g$ is the mean of the diagonal, and its Cholesky factor.

    Inputs that are always zero get a one on the diagonal, and their weights, which do nothing, are
    set to zero before anything is scored. Should the factorization fail, the damping is raised
    tenfold up to five times, then float64 is tried, and that is said.

    Raises:
        DataError: Nothing helps: the Gram matrix holds no usable numbers.
    """
    gram = stats.gram.float().clone()
    weight = weight.float().clone()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    if dead.all():
        return Problem(weight, torch.eye(len(gram)), torch.eye(len(gram)), "no input was active")
    diagonal[dead] = 1
    weight[:, dead] = 0
    mean = diagonal.mean()
    note = ""
    for power in range(6):
        damped = gram + torch.diag(torch.full_like(diagonal, float(damping * 10**power * mean)))
        for precise in (False, True) if power == 5 else (False,):
            factor, info = torch.linalg.cholesky_ex(damped.double() if precise else damped)
            # A pivot of the size of rounding means that what is taken for a factor is noise.
            least = 8 * torch.finfo(factor.dtype).eps * mean
            if not info and bool(factor.diagonal().square().min() > least):
                return Problem(weight, damped, factor.float(), note)
            note = (
                f"{stats.name}: the Gram matrix is singular at damping {damping:g}, "
                f"{damping * 10 ** (power + 1):g} was used: more calibration tokens would help"
            )
    raise DataError(
        f"the Gram matrix of {stats.name} cannot be factorized even with a damping of "
        f"{damping * 1e5:g} times its mean diagonal: look for infinite or huge activations"
    )


def inverse_factor(gram: Tensor) -> Tensor:
    r"""The upper triangular U with $G^{-1} = U^\top U$.

    Read backwards, the Cholesky factor of G is an upper R with $G = R R^\top$, and U is its
    inverse: nothing is squared on the way, as it would be by factorizing the inverse.
    """
    backwards = gram.flip(0, 1)
    factor, info = torch.linalg.cholesky_ex(backwards)
    if info:
        factor = torch.linalg.cholesky(backwards.double()).to(gram.dtype)
    one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(factor.flip(0, 1), one, upper=True)


def scaled_problem(weight: Tensor, stats: Stats, damping: float = 0.01) -> Problem:
    """``problem`` with inputs scaled to a mean square of one: |weight| is then Wanda's score.

    Damping is so the same for every input, however large it is.
    """
    scale = stats.gram.float().diagonal().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    gram = stats.gram.float() / scale / scale[:, None]
    found = problem(weight.float() * scale, Stats(stats.name, gram=gram), damping)
    return replace(found, scale=scale)


def aimed(weight: Tensor, stats: Stats, damping: float = 0.3) -> Tensor:
    r"""The weights that make of the inputs as they are what the dense layer made of the dense ones.

    $W^* = W_0 (\bar C + \lambda \bar g I)(G + \lambda \bar g I)^{-1}$ with $\bar C$ = ``cross``.
    Pruned weights W are as far from the dense outputs as they are from $W^*$ in the norm of the
    damped G, but for a constant, so a solver that is given $W^*$ aims at the dense outputs.

    Args:
        weight: ``(outputs, inputs)``, dense.
        stats: With ``gram`` and ``cross``.
        damping: Relative to the mean of the diagonal; pulls towards the dense weights.
    """
    here = problem(weight, stats, damping)
    change = weight.float() @ (stats.cross.float() - stats.gram.float())
    return here.weight + torch.cholesky_solve(change.T, here.cholesky).T


def layer_error(change: Tensor, gram: Tensor) -> float:
    """Mean squared error of a layer's output, summed over outputs, for a change of its weight."""
    change = change.float()
    return float(((change @ gram.float()) * change).sum())
