"""RIA: a weight's share of its row and of its column, times a power of the input's norm."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(needs={"input_norm"}, paper="https://openreview.net/forum?id=Tr0lPx9woF")
def ria(weight: Tensor, stats: Stats, *, power: float = 0.5) -> Tensor:
    r"""Relative importance and activation, so that no output or input loses all of its weights.

    $$S_{ij} = \left(\frac{|W_{ij}|}{\sum_k |W_{kj}|} + \frac{|W_{ij}|}{\sum_k |W_{ik}|}\right)
    \lVert X_j \rVert_2^{a}$$

    Args:
        weight: ``(outputs, inputs)``, or of a convolution, whose rows go over all of a filter.
        stats: ``input_norm`` of shape ``(inputs,)``.
        power: a.

    Returns:
        Scores of the weight's shape, float32.

    Example:
        >>> ria(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), Stats(input_norm=torch.tensor([4.0, 1.0])))
        tensor([[3.0000, 0.7500],
                [1.5000, 1.0000]])
    """
    size = weight.abs().float()
    columns = size.sum(0).clamp(min=1e-30)
    rows = size.flatten(1).sum(1).clamp(min=1e-30).view(-1, *[1] * (size.dim() - 1))
    norm = stats.input_norm.float().view(-1, *[1] * (size.dim() - 2))
    return (size / columns + size / rows) * norm**power
