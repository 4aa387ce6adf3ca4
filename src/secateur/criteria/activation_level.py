"""Activation level: how large, over a text, what the next layer sees of a unit is (Minitron)."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="input", needs={"input_level"}, paper="arXiv:2407.14679")
def activation_level(weight: Tensor, stats: Stats) -> Tensor:
    r"""Score $S_j = E_b[(\mathrm{mean}_t |X_{b,t,j}|)^2]$ over samples $b$ and their tokens $t$.

    A head's score is the mean over its inputs, so it ranks as the norm over them does.

    Args:
        weight: Not used.
        stats: ``input_level`` of shape ``(inputs,)``.

    Returns:
        Scores of shape ``(inputs,)``, float32.

    Example:
        >>> activation_level(torch.ones(1, 2), Stats(input_level=torch.tensor([1.0, 3.0])))
        tensor([1., 9.])
    """
    return stats.input_level.square()
