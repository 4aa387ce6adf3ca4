"""Row: all weights of one output, a filter of a convolution or a row of a matrix."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, grid, tensor_units


@granularity("row")
def row(parameters: Elements, graph: Any = None) -> Units:
    """Rows ``W[i]`` along the first axis.

    Example:
        >>> row({"weight": torch.ones(4, 3, 3, 3)}).sizes
        {'weight': 27}
    """
    return tensor_units(parameters, lambda shape: grid(shape, (1, *shape[1:])))
