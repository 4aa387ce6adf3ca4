"""Vector: runs of a few weights along the input axis, aligned to its start."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, grid, tensor_units


@granularity("vector")
def vector(parameters: Elements, graph: Any = None, *, length: int = 4) -> Units:
    """Runs ``W[i, l*length : (l+1)*length]``, of a convolution along its input channels.

    Raises:
        ConfigError: The length does not divide a weight's input axis.

    Example:
        >>> vector({"weight": torch.ones(2, 8)}, length=4).counts
        {'weight': 4}
    """

    def blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, length, *(1 for _ in shape[2:]))

    return tensor_units(parameters, lambda shape: grid(shape, blocks(shape)))
