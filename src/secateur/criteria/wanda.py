"""Wanda on units: weight magnitude times the norm of the input it meets."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="input", needs={"input_norm"}, paper="arXiv:2312.11983")
def wanda(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $S_j = \mathrm{mean}_i |W_{ij}| \cdot \lVert X_j \rVert_2$ (Wanda-sp).

    Args:
        weight: ``(outputs, inputs)`` of a layer that takes the units in.
        stats: ``input_norm`` of shape ``(inputs,)``.

    Returns:
        Scores of shape ``(inputs,)``, float32.

    Example:
        >>> wanda(torch.tensor([[3.0, -1.0]]), Stats(input_norm=torch.tensor([1.0, 10.0])))
        tensor([ 3., 10.])
    """
    return weight.float().abs().mean(0) * stats.input_norm
