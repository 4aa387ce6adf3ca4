"""Wanda-sp: Wanda's score, summed over the weights that take a head or a neuron in."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2312.11983")
def wanda_sp(amount: float = 0.2) -> Method:
    """The same fraction of heads and of hidden neurons goes in every layer; nothing is mended.

    Args:
        amount: Fraction of the units removed.

    Example:
        >>> wanda_sp(0.2).criterion
        'wanda'
    """
    return Method(amount, criterion="wanda", granularity="channel", kinds=("head", "channel"))
