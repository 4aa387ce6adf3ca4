"""Taylor, second order: the change of the loss when a weight is zeroed, curvature included."""

from torch import Tensor

from secateur.criteria.curvature import curvature, curvature_needs
from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(
    needs=lambda hessian="fisher": {"grad"} | curvature_needs(hessian),
    paper="arXiv:2305.11627",
    biases=True,
)
def taylor2(weight: Tensor, stats: Stats, *, hessian: str = "fisher") -> Tensor:
    r"""Score $S_i = |g_i w_i - \tfrac12 H_{ii} w_i^2|$.

    Args:
        weight: Any shape.
        stats: ``grad`` and what stands for the Hessian's diagonal, of the weight's shape.
        hessian: ``fisher``: mean squared gradient of single samples; ``hutchinson``: estimated with
            random probes, exact in the mean, noisier, and twice differentiable losses only.

    Returns:
        Scores of the weight's shape, float32, in units of the loss.

    Example:
        >>> stats = Stats(grad=torch.tensor([1.0]), sample_grad_sq=torch.tensor([4.0]))
        >>> taylor2(torch.tensor([2.0]), stats)
        tensor([6.])
    """
    w = weight.float()
    return (stats.grad * w - 0.5 * curvature(stats, hessian) * w.square()).abs()
