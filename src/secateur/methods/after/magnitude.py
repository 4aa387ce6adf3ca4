"""Magnitude: remove the smallest weights."""

from __future__ import annotations

from torch import Tensor

from secateur.engine.target import ROWWISE, Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:1506.02626")
def magnitude(amount: float = 0.5, *, per: str = "layer") -> Method:
    """Needs no data.

    Args:
        amount: Fraction removed.
        per: ``layer`` or ``row``: what is compared with each other.

    Example:
        >>> magnitude(0.5).solver.data
        False
    """
    rowwise = ROWWISE if per == "row" else ROWWISE - {"amount"}
    return Method(amount, solver=Solver(solve, data=False, rowwise=rowwise, options={"per": per}))


def solve(weight: Tensor, stats: object, target: Target, *, per: str = "layer") -> Solved:
    r"""Remove the lowest $|W_{ij}|$ of the layer, or of each row.

    Args:
        weight: ``(outputs, inputs)``.
        stats: Not used.
        target: An amount, a pattern or a mask.
        per: ``layer`` or ``row``: what is compared with each other.
    """
    keep = keep_best(weight.abs().float(), target, per)  # type: ignore[arg-type]
    return Solved(weight * keep, keep)
