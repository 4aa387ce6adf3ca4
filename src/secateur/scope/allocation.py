"""How dense each layer is: allocations from shapes, found by name; one file each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from secateur import scope as members
from secateur.errors import ConfigError
from secateur.names import unknown

Shapes = Mapping[str, tuple[int, ...]]
# From shapes and the amount that goes to the fraction that stays of each.
Allocation = Callable[[Shapes, float], Mapping[str, float]]
F = TypeVar("F", bound=Callable[..., Mapping[str, float]])
_REGISTRY: dict[str, Allocation] = {}
GLOBAL = "global"


def allocation(name: str) -> Callable[[F], F]:
    """Register a function from (shapes, amount) to densities.

    Example:
        >>> @allocation("first-dense")
        ... def first_dense(shapes, amount):
        ...     return {n: 1.0 if i == 0 else 1 - amount for i, n in enumerate(shapes)}
    """

    def register(function: F) -> F:
        _REGISTRY[name] = function
        return function

    return register


def names() -> list[str]:
    """List the allocations; "global" is that of one competition over all layers.

    Example:
        >>> names()[:2]
        ['er', 'erk']
    """
    _load()
    return sorted([*_REGISTRY, GLOBAL])


def find(which: Any) -> Allocation | None:
    """The allocation that a user means; None for the competition over all layers.

    Raises:
        ConfigError: There is no such allocation.
    """
    _load()
    if isinstance(which, Mapping):
        return lambda shapes, amount: _given(which, shapes)
    if callable(which):
        return which
    if which == GLOBAL:
        return None
    if which not in [*_REGISTRY]:  # whatever it is, hashable or not
        raise ConfigError(unknown("scope", which, [*_REGISTRY, GLOBAL]))
    return _REGISTRY[which]


def _given(densities: Mapping[str, float], shapes: Shapes) -> dict[str, float]:
    for name in densities:
        if name not in shapes:
            raise ConfigError(unknown("layer in scope", name, shapes))
    return {n: float(densities.get(n, 1.0)) for n in shapes}


@allocation("uniform")
def uniform(shapes: Shapes, amount: float) -> dict[str, float]:
    """The same fraction of every layer stays.

    Example:
        >>> uniform({"a": (2, 2)}, 0.75)
        {'a': 0.25}
    """
    return dict.fromkeys(shapes, 1 - amount)


@allocation("uniform-first-dense")
def first_dense(shapes: Shapes, amount: float) -> dict[str, float]:
    """The first layer stays whole, the same fraction of every other one stays.

    The first layer is small and much depends on it. The whole loses a little less than asked.

    Example:
        >>> first_dense({"a": (2, 2), "b": (2, 2)}, 0.75)
        {'a': 1.0, 'b': 0.25}

    Paper:
        RigL, arXiv:1911.11134.
    """
    return {n: 1 - amount if i else 1.0 for i, n in enumerate(shapes)}


def filled(raw: Mapping[str, float], sizes: Mapping[str, int], total: float) -> dict[str, float]:
    """Densities in proportion to ``raw`` that keep ``total`` elements together, none above 1.

    What would be denser than 1 is dense, the densest first, and the others share what is left.

    Args:
        raw: Name -> relative density.
        sizes: Name -> number of elements.
        total: How many elements stay.

    Example:
        >>> filled({"a": 4.0, "b": 1.0}, {"a": 10, "b": 20}, 15)
        {'a': 1.0, 'b': 0.25}
    """
    dense: set[str] = set()
    while True:
        open_ = [n for n in raw if n not in dense]
        weight = sum(raw[n] * sizes[n] for n in open_)
        left = total - sum(sizes[n] for n in dense)
        factor = left / weight if left > 0 and weight else 0.0
        most = max((raw[n] for n in open_), default=0.0)
        if factor * most <= 1:
            return {n: 1.0 if n in dense else factor * raw[n] for n in raw}
        dense |= {n for n in open_ if raw[n] == most}


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(members.__path__):
        importlib.import_module(f"{members.__name__}.{module.name}")
