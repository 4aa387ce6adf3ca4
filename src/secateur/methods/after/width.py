"""Width: the project's own recipe for narrower blocks, chosen by Fisher and folded."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2204.09656")
def width(amount: float = 0.2) -> Method:
    r"""Heads and neurons compete by the Fisher information of their gates; the rest takes over.

    A unit's score is $E_b[(\partial L_b / \partial m)^2]$ for a gate $m = 1$ where it is made,
    compared over all blocks, whatever it costs (criterion ``taylor_gate``). What the removed inputs
    $P$ of a layer gave is then put into the weights of those that stay,
    $W_{:,K} + W_{:,P} C_{PK} (C_{KK} + \lambda I)^{-1}$ with the covariance $C$ of the dense
    model's inputs (recovery ``fold``), where ``mask_tuning`` only rescales.

    Args:
        amount: Fraction of the units removed.

    Example:
        >>> width(0.2).recovery
        'fold'
    """
    return Method(
        amount,
        criterion="taylor_gate",
        granularity="channel",
        scope="global",
        kinds=("head", "channel"),
        recovery="fold",
    )
