"""Gram matrices made invertible: dead inputs, damping that grows until Cholesky succeeds."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    weight: Tensor
    gram: Tensor
    cholesky: Tensor
    note: str = ""


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
            if not info and factor.isfinite().all():
                return Problem(weight, damped, factor.float(), note)
            note = (
                f"{stats.name}: the Gram matrix is singular at damping {damping:g}, "
                f"{damping * 10 ** (power + 1):g} was used: more calibration tokens would help"
            )
    raise DataError(
        f"the Gram matrix of {stats.name} cannot be factorized even with a damping of "
        f"{damping * 1e5:g} times its mean diagonal: look for infinite or huge activations"
    )


def layer_error(change: Tensor, gram: Tensor) -> float:
    """Mean squared error of a layer's output, summed over outputs, for a change of its weight."""
    change = change.float()
    return float(((change @ gram.float()) * change).sum())
