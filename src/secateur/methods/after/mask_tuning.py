"""Mask tuning: units by their Fisher information, and those that stay rescaled (Kwon et al.)."""

from __future__ import annotations

from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:2204.09656")
def mask_tuning(amount: float = 0.2, *, tune: bool = True) -> Method:
    r"""Heads and neurons compete by $E_b[(\partial L_b / \partial m)^2]$ of their masks $m = 1$.

    How many go of each layer follows from that information for each weight, which units these are
    from the Fisher matrix of the layer (criterion ``fisher_mask``). Then the masks of what stays
    are solved for, layer by layer (recovery ``scale``), which is the dense layer's output fitted by
    as many numbers as there are units. Give ``keep={"macs": 0.7}`` for the budget of the paper.

    Args:
        amount: Fraction of the units removed.
        tune: Rescale what stays.

    Example:
        >>> mask_tuning(0.2).recovery
        'scale'
    """
    return Method(
        amount,
        criterion="fisher_mask",
        granularity="channel",
        scope="global",
        kinds=("head", "channel"),
        recovery="scale" if tune else None,
    )
