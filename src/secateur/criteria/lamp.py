"""LAMP: squared magnitude relative to all that would be left when a weight's turn comes."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(elementwise=True, paper="arXiv:2010.07611", normalizer="lamp")
def lamp(weight: Tensor, stats: Stats | None = None) -> Tensor:
    r"""Score $S_u = w_u^2 / \sum_{v : w_v^2 \ge w_u^2} w_v^2$ within a layer or a class.

    The function gives the squares; the normalizer ``lamp`` divides, over units or over weights. The
    strongest always scores 1, so a global ranking never empties a layer.

    Args:
        weight: Any shape.
        stats: Not used.

    Returns:
        Squares of the weight's shape, float32.

    Example:
        >>> from secateur.granularity.units import lamp_scale
        >>> lamp_scale(lamp(torch.tensor([1.0, 2.0, 3.0])))
        tensor([0.0714, 0.3077, 1.0000])
    """
    return weight.float().square()
