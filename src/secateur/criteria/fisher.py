"""Empirical Fisher: squared gradients of single samples, weighted by squared weights."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(needs={"sample_grad_sq"}, paper="arXiv:1801.05787", biases=True)
def fisher(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $S_i = w_i^2 F_{ii}$, $F_{ii} = E_n[g_{n,i}^2]$ over samples $n$.

    Args:
        weight: Any shape.
        stats: ``sample_grad_sq``, of the weight's shape; one backward a sample.

    Returns:
        Scores of the weight's shape, float32, in squared units of the loss.

    Example:
        >>> fisher(torch.tensor([2.0]), Stats(sample_grad_sq=torch.tensor([0.5])))
        tensor([2.])
    """
    return weight.float().square() * stats.sample_grad_sq
