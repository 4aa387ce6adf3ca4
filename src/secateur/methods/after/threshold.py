"""Threshold: weights go that are smaller than a multiple of their layer's standard deviation."""

from __future__ import annotations

from torch import Tensor

from secateur.engine.target import Solved, Solver, Target
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


@method(stage="after", paper="arXiv:1506.02626")
def threshold(*, quality: float = 1.0) -> Method:
    r"""How much goes follows from ``quality``; by an amount instead, the method is ``magnitude``.

    Needs no data. Retraining follows with the masks as the plan of a recovery
    (``FineTune(rescale_dropout=True).heal(result.model, result.masks, data)``, which drops less in
    the smaller network as the paper does), or round after round with ``secateur.lottery.tickets``.

    Args:
        quality: Multiple of the standard deviation.

    Raises:
        ConfigError: A negative quality.

    Example:
        >>> threshold(quality=0.5).amount is None
        True
    """
    if not quality >= 0:
        raise ConfigError(f"quality={quality} must not be negative")
    return Method(None, solver=Solver(solve, data=False, options={"quality": quality}))


def solve(weight: Tensor, stats: object, target: Target, *, quality: float = 1.0) -> Solved:
    r"""Keep $|W_{ij}| \ge q\,\sigma(W)$; $\sigma$ over the layer, around its mean.

    Args:
        weight: ``(outputs, inputs)``.
        stats: Not used.
        target: A mask is taken as it is; an amount is not looked at.
        quality: $q$.

    Raises:
        ConfigError: A pattern.
    """
    if target.kind == "pattern":
        raise ConfigError(
            "threshold takes no pattern, as its quality says how much goes: use magnitude"
        )
    size = weight.float().abs()
    keep = size >= quality * weight.float().std(correction=0)
    if target.keep is not None:
        keep = target.keep
    return Solved(weight * keep, keep)
