"""Taylor, first order: the squared change of the loss when a weight, or a whole unit, is zeroed."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(needs={"grad_sq"}, paper="arXiv:1906.10771", biases=True)
def taylor(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $S_i = E_b[(g_i w_i)^2]$, $g$ the gradient of a batch's loss; summed over a unit.

    ``taylor_gate`` squares the sum instead of summing squares.

    Args:
        weight: Any shape.
        stats: ``grad_sq``, of the weight's shape.

    Returns:
        Scores of the weight's shape, float32, in squared units of the loss.

    Example:
        >>> taylor(torch.tensor([2.0]), Stats(grad_sq=torch.tensor([9.0])))
        tensor([36.])
    """
    return weight.float().square() * stats.grad_sq
