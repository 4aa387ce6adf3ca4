"""How much of each layer goes where weights, and what they meet, say it: found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from secateur import scope as members
from secateur.errors import ConfigError
from secateur.names import unknown

# From layers and the amount that goes in all to the amount that goes of each.
Function = Callable[..., Mapping[str, float]]


@dataclass(frozen=True)
class Weighed:
    """One layer of a trained model.

    Attributes:
        name: Of the layer: its parameter, with an index for a part.
        block: Name of the block that it is in.
        weight: ``(outputs, inputs)``, dense.
        input_norm: ``(inputs,)``, root of the mean squared input; None without data.
        output_gradient: ``(outputs,)``, root of the mean squared gradient of the loss with respect
            to the layer's output; None without a backward pass.
    """

    name: str
    block: str
    weight: Tensor
    input_norm: Tensor | None = None
    output_gradient: Tensor | None = None


@dataclass(frozen=True)
class Amounts:
    """A way to divide an amount among layers.

    Attributes:
        function: ``(layers, amount, **options)`` to amounts by name.
        inputs: Whether it looks at the norms of inputs, which a pass over the data gives.
        gradients: Whether it looks at gradients too, which a backward pass gives; outputs of a
            layer then also compete by them.
    """

    function: Function
    inputs: bool = False
    gradients: bool = False


_REGISTRY: dict[str, Amounts] = {}


def amounts(
    name: str, *, inputs: bool = False, gradients: bool = False
) -> Callable[[Function], Function]:
    """Register a function from ``(layers, amount)`` to amounts by name.

    Example:
        >>> @amounts("first-dense")
        ... def first_dense(layers, amount):
        ...     return {layer.name: 0.0 if i == 0 else amount for i, layer in enumerate(layers)}
    """

    def register(function: Function) -> Function:
        _REGISTRY[name] = Amounts(function, inputs, gradients)
        return function

    return register


def names() -> list[str]:
    """List them.

    Example:
        >>> "owl" in names()
        True
    """
    _load()
    return sorted(_REGISTRY)


def find(which: str) -> Amounts:
    """What a name stands for.

    Raises:
        ConfigError: There is none of that name.
    """
    _load()
    if which not in [*_REGISTRY]:  # whatever it is, hashable or not
        raise ConfigError(unknown("scope of layers", which, _REGISTRY))
    return _REGISTRY[which]


def divide(
    which: str, layers: Sequence[Weighed], amount: float, options: Mapping[str, Any]
) -> dict[str, float]:
    """Amounts by layer, checked.

    Raises:
        ConfigError: There is no such scope or option, or a layer would lose more than all of it.
    """
    try:
        found = dict(find(which).function(layers, amount, **options))
    except TypeError as error:
        raise ConfigError(f"scope {which}: {error}") from error
    for name, part in found.items():
        if not 0 <= part <= 1:
            raise ConfigError(
                f"scope {which} would remove {part:.0%} of {name} to remove {amount:.0%} in all: "
                "ask for layers that differ less (spread=), or for another amount"
            )
    return found


@amounts("uniform")
def uniform(layers: Sequence[Weighed], amount: float) -> dict[str, float]:
    """The same fraction of every layer goes.

    Example:
        >>> uniform([], 0.5)
        {}
    """
    return {layer.name: amount for layer in layers}


def shares_of_lowest(
    layers: Sequence[Weighed], score: Callable[[Weighed], Tensor], amount: float
) -> dict[str, float]:
    """Which part of each layer is among the ``round(amount n)`` lowest scores of all.

    Scores are made three times, one layer's at a time, so that a large model's are never held
    together: the first two find the last score that goes, digit by digit, as floats that are not
    negative are in the order of their bits.

    Args:
        layers: Of equal scores those of earlier layers go first.
        score: What each weight of a layer is worth, not negative.
        amount: Fraction that goes in all.

    Example:
        >>> a, b = Weighed("a", "", torch.tensor([1.0, 2.0])), Weighed("b", "", torch.tensor([3.0]))
        >>> shares_of_lowest([a, b], lambda layer: layer.weight, 2 / 3)
        {'a': 1.0, 'b': 0.0}
    """

    def bits(layer: Weighed) -> Tensor:
        return score(layer).float().flatten().view(torch.int32)

    total = sum(layer.weight.numel() for layer in layers)
    count = round(amount * total)
    if not count:
        return {layer.name: 0.0 for layer in layers}
    high, before = _digit(((bits(layer) >> 16) for layer in layers), count)
    low, _ = _digit(
        (found[found >> 16 == high] & 0xFFFF for layer in layers for found in [bits(layer)]),
        count - before,
    )
    last = high << 16 | low
    fewer = {layer.name: _below(bits(layer), last) for layer in layers}
    left = count - sum(below for below, _ in fewer.values())
    found = {}
    for layer in layers:
        below, equal = fewer[layer.name]
        equal = min(left, equal)
        left -= equal
        found[layer.name] = (below + equal) / layer.weight.numel()
    return found


def _digit(values: Iterable[Tensor], count: int) -> tuple[int, int]:
    """The ``count``-th smallest of values below 2^16, and how many are smaller."""
    histogram = torch.zeros(1 << 16, dtype=torch.int64)
    for part in values:
        histogram += torch.bincount(part, minlength=1 << 16).cpu()
    upto = histogram.cumsum(0)
    digit = int((upto < count).sum())
    return digit, int(upto[digit - 1]) if digit else 0


def _below(bits: Tensor, last: int) -> tuple[int, int]:
    return int((bits < last).sum()), int((bits == last).sum())


def by_block(values: Mapping[str, float], layers: Sequence[Weighed]) -> dict[str, float]:
    """The mean over the layers of each block, for each of its layers.

    Example:
        >>> two = [Weighed("a", "0", None), Weighed("b", "0", None)]
        >>> by_block({"a": 1.0, "b": 3.0}, two)
        {'a': 2.0, 'b': 2.0}
    """
    together: dict[str, list[float]] = {}
    for layer in layers:
        together.setdefault(layer.block, []).append(values[layer.name])
    mean = {block: sum(found) / len(found) for block, found in together.items()}
    return {layer.name: mean[layer.block] for layer in layers}


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(members.__path__):
        importlib.import_module(f"{members.__name__}.{module.name}")
