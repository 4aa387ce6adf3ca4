"""Saliency: how sensitive the loss is to a connection's presence (SNIP)."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(needs={"grad"}, paper="arXiv:1810.02340", aliases=("snip", "connection_sensitivity"))
def saliency(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $S_i = |g_i w_i|$, $g$ the gradient of the mean loss over all batches.

    The absolute value is taken after the mean over batches. The paper divides by the sum over the
    network, which changes no ranking.

    Args:
        weight: Any shape.
        stats: ``grad``, of the weight's shape.

    Returns:
        Scores of the weight's shape, float32, in units of the loss.

    Example:
        >>> saliency(torch.tensor([-2.0]), Stats(grad=torch.tensor([3.0])))
        tensor([6.])
    """
    return (weight.float() * stats.grad).abs()
