"""Small trained networks and their data: `names`, `build`, `load`, `evaluate`, `loaders`, ..."""

from secateur.zoo.registry import (
    build,
    card,
    data_names,
    evaluate,
    example_inputs,
    load,
    load_data,
    loaders,
    names,
)

__all__ = [
    "build",
    "card",
    "data_names",
    "evaluate",
    "example_inputs",
    "load",
    "load_data",
    "loaders",
    "names",
]
