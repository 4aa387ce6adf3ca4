"""Random operators made still: each gives its mean.

A narrower tensor draws other numbers at the same units, so a forward that draws at evaluation
cannot be compared with its pruned self. With the means in place of the draws it can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.graph.operators import described


class Still(TorchDispatchMode):
    """Replaces what is drawn by its mean; what it does not know is drawn as ever.

    Example:
        >>> with Still():
        ...     torch.rand(2), torch.nn.functional.dropout(torch.ones(2), 0.1)
        (tensor([0.5000, 0.5000]), tensor([1.1111, 1.1111]))
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        about = described(func)
        if not about.random:
            return result
        given = dict(zip(about.arguments, args, strict=False)) | kwargs
        if about.name == "native_dropout":
            return given["input"].clone(), torch.ones_like(result[1])
        mean = _mean(about.name.rstrip("_"), given, about.mutates)
        if mean is None or not isinstance(result, Tensor):
            return result
        return result.copy_(mean) if isinstance(mean, Tensor) else result.fill_(mean)


def _mean(name: str, given: dict[str, Any], inplace: bool) -> Tensor | float | None:
    match name:
        case "rand" | "rand_like":
            return 0.5
        case "randn" | "randn_like":
            return 0.0
        case "uniform":
            return (given.get("from", 0.0) + given.get("to", 1.0)) / 2
        case "normal":
            return given.get("mean", 0.0)
        case "exponential":
            return 1 / given.get("lambd", 1.0)
        case "bernoulli":  # the likelier of its two values: a half-kept unit would be none of both
            p = given.get("p", 0.5 if inplace else given["self"])
            return p >= 0.5 if isinstance(p, Tensor) else float(p >= 0.5)
        case "randint" | "randint_like":
            return float(given.get("low", 0))
    return None
