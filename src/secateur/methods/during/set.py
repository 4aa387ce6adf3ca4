"""SET: drop the weights closest to zero on either side, grow others at random."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.methods.during.rigl import cosine
from secateur.methods.registry import Method, method


def closeness(weight: Tensor, stats: Any = None) -> Tensor:
    """Rank of each weight's size among those of its sign, as a fraction in (0, 1]; zeros get 0.

    The lowest share z of it is the smallest share z of the positive weights together with the
    largest share z of the negative ones, whatever the two scales are.

    Example:
        >>> closeness(torch.tensor([0.1, 0.2, -3.0, -4.0, 0.0]))
        tensor([0.5000, 1.0000, 0.5000, 1.0000, 0.0000])
    """
    scores = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for side in (weight > 0, weight < 0):
        order = weight[side].abs().argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(1, len(order) + 1, device=order.device)
        scores[side] = rank.float() / max(len(order), 1)
    return scores


@method(stage="during", paper="arXiv:1707.04780", name="set")
def evolutionary(
    amount: float = 0.9,
    *,
    every: int = 100,
    share: float = 0.3,
    per_sign: bool = True,
    anneal: bool = False,
    scope: Any = "er",
    granularity: Any = "element",
) -> Method:
    """Sparse evolutionary training: the number of weights stays, their places move at random.

    Every ``every`` steps (the paper's are epochs) a share of each layer's weights goes, the
    smallest positive and the largest negative ones, and as many return, at zero, anywhere in the
    layer. That step updates no weight; optimizer slots of returning weights are reset.

    Args:
        amount: Fraction that is absent, from the start.
        every: Steps between two exchanges.
        share: Fraction exchanged.
        per_sign: Whether the share goes of either sign by itself; else of both, by magnitude.
        anneal: Whether the share falls to nothing along a cosine, as in RigL.
        scope: Allocation of the first, random mask.
        granularity: What is exchanged as one; per sign it is single elements.

    Example:
        >>> evolutionary(0.9).grow
        'random'
    """
    fall = partial(cosine, share=share, stop=1.0) if anneal else partial(constant, share=share)
    return Method(
        amount,
        criterion=closeness if per_sign else "magnitude",
        first="random",
        grow="random",
        scope=scope,
        granularity=granularity,
        every=every,
        drop=fall,
    )


def constant(progress: float, *, share: float) -> float:
    """The share until the last step, which moves nothing: what grew then would never be trained.

    Example:
        >>> constant(0.5, share=0.3), constant(1.0, share=0.3)
        (0.3, 0.0)
    """
    return share if progress < 1 else 0.0
