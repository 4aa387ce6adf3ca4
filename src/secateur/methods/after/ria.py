"""RIA: a weight's share of its row and of its column, times a power of the input's norm."""

from __future__ import annotations

from torch import Tensor

from secateur.criteria.ria import ria as scores
from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method


@method(stage="after", paper="https://openreview.net/forum?id=Tr0lPx9woF")
def ria(amount: float = 0.5, *, power: float = 0.5, per: str = "layer") -> Method:
    """Relative importance keeps an output or an input from losing all of its weights.

    Args:
        amount: Fraction removed.
        power: Of the input's norm.
        per: ``layer`` or ``row``: what is compared with each other.

    Example:
        >>> sorted(ria(0.5).solver.needs)
        []
    """
    return Method(amount, solver=Solver(solve, options={"power": power, "per": per}))


def solve(
    weight: Tensor, stats: Stats, target: Target, *, power: float = 0.5, per: str = "layer"
) -> Solved:
    r"""Remove the lowest $S_{ij}$; weights are not updated.

    $$S_{ij} = \left(\frac{|W_{ij}|}{\sum_k |W_{kj}|} + \frac{|W_{ij}|}{\sum_k |W_{ik}|}\right)
    \lVert X_j \rVert_2^{a}$$

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``input_norm``.
        target: An amount, a pattern or a mask.
        power: a.
        per: ``layer`` or ``row``: what is compared with each other.
    """
    keep = keep_best(scores(weight, stats, power=power), target, per)  # type: ignore[arg-type]
    return Solved(weight * keep, keep)
