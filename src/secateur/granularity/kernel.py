"""Kernel: the k x k weights between one input and one output channel."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, grid, tensor_units


@granularity("kernel")
def kernel(parameters: Elements, graph: Any = None) -> Units:
    """Kernels ``W[i, j]``; in a matrix these are single weights.

    Example:
        >>> kernel({"weight": torch.ones(4, 2, 3, 3)}).sizes
        {'weight': 9}
    """
    return tensor_units(parameters, lambda shape: grid(shape, (1, 1, *shape[2:])))
