"""SparseGPT: remove weights column by column, and let the later columns make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import inverse_factor, problem
from secateur.engine.statistics import Stats
from secateur.engine.target import ROWWISE, Solved, Solver, Target, keep_best
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2301.00774")
def sparsegpt(
    amount: float = 0.5, *, block: int = 128, damping: float = 0.01, bits: int | None = None
) -> Method:
    """Chooses and updates weights together; needs the Gram matrix of each layer's inputs.

    Args:
        amount: Fraction removed.
        block: Columns whose weights are compared with each other.
        damping: Added to the Gram matrix's diagonal, relative to its mean.
        bits: Also round what stays to so many bits.

    Example:
        >>> sorted(sparsegpt(0.5).solver.needs)
        ['gram']
    """
    options = {"block": block, "damping": damping, "bits": bits}
    rowwise = ROWWISE - {"amount"}  # which compares the rows of a block with each other
    return Method(
        amount, solver=Solver(solve, frozenset({"gram"}), rowwise=rowwise, options=options)
    )


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    block: int = 128,
    damping: float = 0.01,
    bits: int | None = None,
) -> Solved:
    r"""Optimal brain surgery, each row with the columns before the current one frozen.

    With $G^{-1} = U^\top U$, the score of weight $w_i$ is $w_i^2 / U_{ii}^2$; a removed one changes
    the columns after it by $-\frac{w_i}{U_{ii}} U_{i,i:}$. Masks are chosen a block of columns at a
    time on the weights as they are by then (a pattern: a group at a time).

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: An amount (spread evenly over blocks, exact in all), a pattern or a mask.
        block: Columns whose weights are compared with each other.
        damping: Added to the diagonal, relative to its mean.
        bits: Also round what stays to so many bits, asymmetric, one scale an output; the same
            update makes up for it.

    Raises:
        ConfigError: The block is no multiple of the pattern's group.
    """
    here = problem(weight, stats, damping)
    w = here.weight
    rows, columns = w.shape
    group = target.pattern[1] if target.pattern is not None and target.keep is None else 0
    if group and (block % group or columns % group):
        raise ConfigError(
            f"{stats.name}: blocks of {block} and {columns} inputs must be multiples of {group}, "
            "the group of the pattern: choose another block, or ignore= this layer"
        )
    upper = inverse_factor(here.gram)
    scale = upper.diagonal()
    rounded = _rounding(w, bits)
    w = w.T.contiguous()  # a column of the weight is a row here
    keep = torch.ones_like(w, dtype=torch.bool)
    if target.keep is not None:
        keep = target.keep.T.contiguous()
    removed = 0
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        if target.keep is None and not group:
            share = (round(target.amount * stop * rows) - removed) / ((stop - start) * rows)
            part = Target(share, rows=target.rows)
            scores = (w[start:stop] / scale[start:stop, None]).abs().T
            keep[start:stop] = keep_best(scores, part).T
            removed += round(part.amount * scores.numel())
        errors = torch.empty(stop - start, rows)
        for i in range(start, stop):
            if group and (i - start) % group == 0:
                scores = (w[i : i + group] / scale[i : i + group, None]).abs().T
                keep[i : i + group] = keep_best(scores, target).T
            stays = rounded(w[i] * keep[i])
            errors[i - start] = (w[i] - stays) / scale[i]
            w[i] = stays
            w[i + 1 : stop].addr_(upper[i, i + 1 : stop], errors[i - start], alpha=-1)
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return Solved((w * keep).T.contiguous(), keep.T.contiguous(), here.note)


def _rounding(weight: Tensor, bits: int | None):  # type: ignore[no-untyped-def]
    """Rounds a column to the grid of each row of the dense weight."""
    if bits is None:
        return lambda column: column
    low = weight.amin(1).clamp(max=0)
    step = ((weight.amax(1).clamp(min=0) - low) / (2**bits - 1)).clamp(min=1e-12)
    zero = (-low / step).round()

    def rounded(column: Tensor) -> Tensor:
        return ((column / step).round() + zero).clamp(0, 2**bits - 1).sub(zero).mul(step)

    return rounded
