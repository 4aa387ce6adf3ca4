"""Element: every weight is a unit of its own."""

from typing import Any

from secateur.granularity.registry import Elements, Units, granularity, tensor_units


@granularity("element")
def element(parameters: Elements, graph: Any = None) -> Units:
    """Single weights.

    Example:
        >>> element({"weight": torch.ones(2, 3)}).counts
        {'weight': 6}
    """
    return tensor_units(parameters, lambda shape: None)
