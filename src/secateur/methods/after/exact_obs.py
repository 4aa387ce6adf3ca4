"""ExactOBS: remove one weight of a row at a time, always the one whose loss is least by then."""

from __future__ import annotations

from secateur.engine.target import Solver
from secateur.methods.after.obs import solve
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2208.11580")
def exact_obs(amount: float = 0.5, *, damping: float = 0.01) -> Method:
    """The greedy optimum of layer-wise pruning; time grows with the cube of the inputs, each row.

    It is ``obs`` where that is greedy, under the name of its paper.

    Args:
        amount: Fraction removed.
        damping: Added to the Gram matrix's diagonal, relative to its mean.

    Example:
        >>> sorted(exact_obs(0.5).solver.needs)
        ['gram']
    """
    return Method(amount, solver=Solver(solve, frozenset({"gram"}), options={"damping": damping}))
