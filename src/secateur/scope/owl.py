"""OWL: blocks with more outliers among weight times input stay denser."""

from collections.abc import Sequence

import torch

from secateur.errors import DataError
from secateur.scope.amounts import Weighed, amounts


@amounts("owl", inputs=True)
def owl(
    layers: Sequence[Weighed], amount: float, *, outlier: float = 5.0, spread: float = 0.08
) -> dict[str, float]:
    r"""Density $d_l = 1 - s + 2\lambda \frac{D_l - \min D}{\max D - \min D} - c$.

    $D_l$ is the share of $A_{ij} = |W_{ij}| \lVert X_j \rVert_2$ in block l that exceed M times
    their mean; c makes the densities meet the amount, counted in weights.

    Args:
        layers: Dense, with the norms of their inputs.
        amount: s, the fraction that goes in all.
        outlier: M.
        spread: $\lambda$: amounts lie within $2\lambda$ of each other.

    Raises:
        DataError: The norms of the inputs are not known.

    Example:
        >>> flat = Weighed("a", "0", torch.ones(2, 4), torch.ones(4))
        >>> peaked = Weighed("b", "1", torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0]]), torch.ones(8))
        >>> owl([flat, peaked], 0.5)
        {'a': 0.58, 'b': 0.42}

    Paper:
        arXiv:2310.05175
    """
    scores: dict[str, list[torch.Tensor]] = {}
    for layer in layers:
        if layer.input_norm is None:
            raise DataError(f"scope owl needs calibration data, which {layer.name} has not seen")
        found = layer.weight.abs().float() * layer.input_norm.float()
        scores.setdefault(layer.block, []).append(found.flatten())
    share: dict[str, float] = {}
    for block, parts in scores.items():
        together = torch.cat(parts)
        share[block] = float((together > outlier * together.mean()).double().mean())
    low, high = min(share.values()), max(share.values())
    dense = {b: 2 * spread * (v - low) / (high - low) if high > low else 0.0
             for b, v in share.items()}  # fmt: skip
    total = sum(layer.weight.numel() for layer in layers)
    mean = sum(dense[layer.block] * layer.weight.numel() for layer in layers) / total
    return {layer.name: round(amount + mean - dense[layer.block], 12) for layer in layers}
