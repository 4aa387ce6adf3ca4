"""ThiNet: greedily remove the input channels that together change the next layer's output least."""

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="input", needs={"contribution"}, paper="arXiv:1707.06342")
def thinet(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score: the step at which a channel is removed, first removals first.

    With $Z_c$ the contribution of channel c to the layer's output at sampled positions, each step
    adds to the removed set T the channel that keeps $\sum (\sum_{c \in T} Z_c)^2$ smallest. The
    error counts all outputs of the layer; the authors sample one a position. The recovery
    ``least-squares`` then refits the weights of what is left.

    Args:
        weight: Not used: it is in the contributions.
        stats: ``contribution`` of shape ``(inputs, inputs)``.

    Returns:
        Scores of shape ``(inputs,)``, float32, 1 to the number of inputs over that number.

    Example:
        >>> stats = Stats(contribution=torch.tensor([[4.0, -3.0], [-3.0, 9.0]]))
        >>> thinet(torch.ones(1, 2), stats)
        tensor([0.5000, 1.0000])
    """
    gram = stats.contribution.double()
    count = len(gram)
    scores = torch.zeros(count, device=gram.device)
    crossing = torch.zeros_like(gram[0])  # of each channel with the sum of the removed ones
    left = torch.ones(count, dtype=torch.bool, device=gram.device)
    for step in range(1, count + 1):
        rise = (gram.diagonal() + 2 * crossing).masked_fill(~left, torch.inf)
        chosen = rise.argmin()
        scores[chosen] = step / count
        left[chosen] = False
        crossing = crossing + gram[chosen]
    return scores
