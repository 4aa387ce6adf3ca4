"""Optimal Brain Damage: the rise of the loss at a minimum when a weight is zeroed."""

from torch import Tensor

from secateur.criteria.curvature import curvature, curvature_needs
from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(
    needs=curvature_needs,
    paper="LeCun et al., Optimal brain damage, NeurIPS 1989",
    biases=True,
)
def obd(weight: Tensor, stats: Stats, *, hessian: str = "hutchinson") -> Tensor:
    r"""Score $S_i = \tfrac12 H_{ii} w_i^2$; the gradient is taken to be zero.

    Args:
        weight: Any shape.
        stats: What stands for the Hessian's diagonal, of the weight's shape.
        hessian: ``hutchinson`` (random probes) or ``fisher`` (mean squared gradient of samples).

    Returns:
        Scores of the weight's shape, float32, in units of the loss; negative where the loss curves
        down.

    Example:
        >>> obd(torch.tensor([2.0]), Stats(hessian=torch.tensor([3.0])))
        tensor([6.])
    """
    return 0.5 * curvature(stats, hessian) * weight.float().square()
