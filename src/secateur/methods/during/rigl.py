"""RigL: drop the smallest weights, grow where the dense gradient is largest."""

import math
from functools import partial
from typing import Any

from secateur.methods.registry import Method, method


def cosine(progress: float, *, share: float, stop: float, least: float = 0.0) -> float:
    """The exchanged share, annealed to ``least`` just before ``stop``; from there on nothing moves.

    Example:
        >>> [round(cosine(t, share=0.3, stop=1.0), 5) for t in (0, 0.25, 0.5, 0.75, 1)]
        [0.3, 0.25607, 0.15, 0.04393, 0.0]
    """
    if progress >= stop:
        return 0.0
    return least + (share - least) / 2 * (1 + math.cos(math.pi * progress / stop))


@method(stage="during", paper="arXiv:1911.11134")
def rigl(
    amount: float = 0.9,
    *,
    every: int = 100,
    share: float = 0.3,
    stop: float = 0.75,
    scope: Any = "erk",
    dense_first: bool = True,
    granularity: Any = "element",
) -> Method:
    """The number of weights stays, their places move.

    Every ``every`` steps until ``stop`` of training a cosine-annealed share of each layer's weights
    goes by magnitude, and as many return, at zero, where the dense gradient is largest; that step
    updates no weight. Optimizer slots of returning weights are reset.

    Args:
        amount: Fraction that is absent, from the start.
        every: Steps between two exchanges.
        share: Fraction exchanged at first.
        stop: Part of training after which the mask is fixed.
        scope: Allocation of the first, random mask.
        dense_first: Whether the scope "uniform" leaves the first layer dense and takes ``amount``
            of each other one, as in the paper.
        granularity: What is exchanged as one; not channels, which get no gradient while masked.

    Example:
        >>> rigl(0.9).grow
        'gradient'
    """
    if dense_first and scope == "uniform":
        scope = "uniform-first-dense"
    return Method(
        amount,
        first="random",
        grow="gradient",
        scope=scope,
        granularity=granularity,
        every=every,
        drop=partial(cosine, share=share, stop=stop),
    )
