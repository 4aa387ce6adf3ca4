"""Minitron: keep the heads, neurons and widths that are active over whole texts."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2407.14679")
def minitron(amount: float = 0.2, *, width: bool = False) -> Method:
    """Only forwards are needed; the paper then distils from the dense model (``recovery=``).

    Args:
        amount: Fraction of the units removed, the same in every class.
        width: Remove positions of the residual stream too.

    Example:
        >>> minitron(0.2).criterion
        'activation_level'
    """
    kinds = ("head", "channel", "width") if width else ("head", "channel")
    return Method(amount, criterion="activation_level", granularity="channel", kinds=kinds)
