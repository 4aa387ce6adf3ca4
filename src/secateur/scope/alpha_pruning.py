"""AlphaPruning: blocks whose spectra have heavy tails stay denser."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.scope.amounts import Weighed, amounts, by_block


@amounts("alpha-pruning")
def alpha_pruning(
    layers: Sequence[Weighed], amount: float, *, spread: float = 0.3
) -> dict[str, float]:
    r"""Amount $s_l = c \left(1 - \epsilon + 2 \epsilon
    \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha}\right)$, no data needed.

    $\alpha_l$ is the mean of the block's layers' exponents of the tail of the eigenvalues of
    $W^\top W$; c makes the amounts meet s, counted in weights.

    Args:
        layers: Dense.
        amount: s, the fraction that goes in all.
        spread: $\epsilon$.

    Example:
        >>> heavy = Weighed("a", "0", torch.diag(torch.tensor([1.0, 1.0, 2.0, 8.0])))
        >>> light = Weighed("b", "1", torch.diag(torch.tensor([1.0, 1.0, 1.1, 1.2])))
        >>> {name: round(part, 2) for name, part in alpha_pruning([heavy, light], 0.5).items()}
        {'a': 0.35, 'b': 0.65}

    Paper:
        arXiv:2410.10912
    """
    alpha = by_block({layer.name: tail_exponent(layer.weight) for layer in layers}, layers)
    low, high = min(alpha.values()), max(alpha.values())
    ratio = {
        name: 1 - spread + 2 * spread * (value - low) / (high - low) if high > low else 1.0
        for name, value in alpha.items()
    }
    total = sum(layer.weight.numel() for layer in layers)
    mean = sum(ratio[layer.name] * layer.weight.numel() for layer in layers) / total
    return {name: amount * value / mean for name, value in ratio.items()}


def tail_exponent(weight: Tensor) -> float:
    r"""Hill's estimate $\alpha = 1 + k / \sum_{i \le k} \ln(\lambda_i / \lambda_{k+1})$.

    Over the largest half of the eigenvalues $\lambda$ of $W^\top W$.

    Args:
        weight: ``(outputs, inputs)``.

    Example:
        >>> round(tail_exponent(torch.diag(torch.tensor([1.0, 1.0, 2.0, 8.0]))), 3)
        1.361
    """
    values = torch.linalg.svdvals(weight.detach().float()).square().double()  # falling
    k = max(1, len(values) // 2)
    tail = (values[:k] / values[min(k, len(values) - 1)].clamp(min=1e-30)).log().sum()
    return 1 + k / max(float(tail), 1e-12)
