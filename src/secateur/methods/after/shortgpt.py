"""ShortGPT: leave out the blocks that turn what passes through them the least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from secateur.engine.batches import inputs_of
from secateur.engine.padding import Tokens, picked
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.gaps import Gap


@method(stage="after", paper="arXiv:2403.03853")
def shortgpt(amount: float = 0.2) -> Method:
    """One pass over the data; all blocks are judged in the dense model and go at once.

    Args:
        amount: Fraction of the blocks removed.

    Example:
        >>> shortgpt(0.2).granularity
        'layer'
    """
    return Method(amount, granularity="layer", search=least_turning)


def least_turning(depth: Depth, enough: Callable[[Sequence[Gap]], bool]) -> list[Gap]:
    """The blocks of least influence, until it is enough."""
    influence = block_influence(depth)
    order = sorted(depth.candidates, key=lambda gap: influence[depth.block_of(gap)])
    count = next(k for k in range(len(order) + 1) if enough(order[:k]))
    return order[:count]


def block_influence(depth: Depth) -> list[float]:
    r"""$1 - E_t[\cos(X_{l,t}, X_{l+1,t})]$ of what goes into and comes out of each block.

    Args:
        depth: The model and the batches; the mean is over all tokens but padding.
    """
    totals = torch.zeros(len(depth.blocks), dtype=torch.float64)
    tokens = 0
    for batch in depth.batches:
        valid = Tokens(depth.model, inputs_of(batch))
        reached = [picked(x, valid.rows(x, depth.blocks[0])) for x in depth.reaching(batch)]
        tokens += reached[0][..., 0].numel()
        totals += torch.stack([_cosines(x, y).cpu() for x, y in pairwise(reached)])
    return [1 - t / tokens for t in totals.tolist()]


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    return torch.cosine_similarity(x.double(), y.double(), dim=-1).sum()
