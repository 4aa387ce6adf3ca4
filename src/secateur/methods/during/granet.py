"""GraNet: prune little by little, and let as many weights regenerate as a share that is dropped."""

from functools import partial
from typing import Any

from secateur.methods.during.rigl import cosine
from secateur.methods.registry import Method, method
from secateur.schedule.registry import find


@method(stage="during", paper="arXiv:2106.10404")
def granet(
    amount: float = 0.9,
    *,
    initial: float = 0.0,
    every: int = 1000,
    start: float = 0.0,
    end: float = 0.7,
    share: float = 0.5,
    scope: Any = "global",
    granularity: Any = "element",
) -> Method:
    r"""At every look weights go by magnitude down to $s(t)$; then a share changes places.

    $$s(t) = s_f + (s_i - s_f)(1 - t)^3$$

    over the steps from ``start`` to ``end``. After each pruning a share of each layer's weights,
    falling along a cosine, is dropped by magnitude, and as many return, at zero, where the dense
    gradient is largest; that step updates no weight.

    Args:
        amount: $s_f$, fraction removed at the end.
        initial: $s_i$, fraction absent at the start (random, ERK); 0 starts dense.
        every: Steps between two looks.
        start, end: Part of training in which weights are pruned, as fractions of its steps.
        share: Fraction exchanged at first.
        scope: Of the pruning; the paper's is global.
        granularity: What goes as one; not channels, which get no gradient while masked.

    Example:
        >>> method = granet(0.9, start=0.0, end=1.0)
        >>> round(method.schedule.at(0.5), 4), round(method.drop(0.5), 4)
        (0.7875, 0.25)
    """
    return Method(
        amount,
        first="random",
        first_scope="erk",
        grow="gradient",
        scope=scope,
        granularity=granularity,
        schedule=find("cubic", amount, initial=initial, start=start, end=end),
        every=every,
        drop=partial(cosine, share=share, stop=1.0),
    )
