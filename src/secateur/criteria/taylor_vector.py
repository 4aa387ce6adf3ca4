"""Taylor on vectors: the change of the loss when a whole row or column is zeroed."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(needs={"grad"}, paper="arXiv:2305.11627", vectors=True)
def taylor_vector(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $|\sum_{i \in v} g_i w_i|$ of each row or column $v$, summed over those of a unit.

    ``saliency`` sums $|g_i w_i|$ instead: there weights cannot make up for one another.

    Args:
        weight: Any shape.
        stats: ``grad``, of the weight's shape: the gradient of the mean loss.

    Returns:
        $g_i w_i$ of the weight's shape, float32, in units of the loss; sums are made later.

    Example:
        >>> taylor_vector(torch.tensor([2.0, -1.0]), Stats(grad=torch.tensor([1.0, 1.0])))
        tensor([ 2., -1.])
    """
    return weight.float() * stats.grad
