"""Block: rectangles of r rows by c columns, as block-sparse kernels want them."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, grid, tensor_units


@granularity("block")
def block(parameters: Elements, graph: Any = None, *, rows: int = 4, columns: int = 4) -> Units:
    """Blocks over the output and input axes; the spatial axes of a convolution go whole.

    Raises:
        ConfigError: The blocks do not divide a weight.

    Example:
        >>> block({"weight": torch.ones(8, 4)}, rows=2, columns=2).counts
        {'weight': 8}
    """
    return tensor_units(parameters, lambda shape: grid(shape, (rows, columns, *shape[2:])))
