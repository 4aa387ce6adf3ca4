"""Column: all weights that read one input, a channel's slice or a column of a matrix."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, grid, tensor_units


@granularity("column")
def column(parameters: Elements, graph: Any = None) -> Units:
    """Columns ``W[:, j]`` along the second axis.

    Example:
        >>> column({"weight": torch.ones(4, 3, 3, 3)}).counts
        {'weight': 3}
    """
    return tensor_units(parameters, lambda shape: grid(shape, (shape[0], 1, *shape[2:])))
