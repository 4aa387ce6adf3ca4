"""What a scope is, and where it is found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from secateur import scope as members
from secateur.errors import ConfigError
from secateur.graph import Graph, UnitClass
from secateur.names import unknown

# From the classes that may be pruned to pools. Units compete inside their pool; every pool loses
# the same fraction of its units.
Pools = list[list[UnitClass]]
Scope = Callable[[Graph, Sequence[UnitClass]], Pools]
_REGISTRY: dict[str, Scope] = {}


def scope(name: str) -> Callable[[Scope], Scope]:
    """Register a function from classes to pools as a scope.

    Example:
        >>> @scope("by_kind")
        ... def by_kind(graph, classes):
        ...     return [[c for c in classes if c.kind == k] for k in {c.kind for c in classes}]
    """

    def register(function: Scope) -> Scope:
        _REGISTRY[name] = function
        return function

    return register


def names() -> list[str]:
    """List the scopes.

    Example:
        >>> "global" in names()
        True
    """
    _load()
    return sorted(_REGISTRY)


def find(which: Any) -> Scope:
    """The scope that a user means: a name, or a function from (graph, classes) to pools.

    Raises:
        ConfigError: There is no such scope.
    """
    _load()
    if callable(which):
        return which
    if which not in [*_REGISTRY]:  # whatever it is, hashable or not
        raise ConfigError(unknown("scope", which, _REGISTRY))
    return _REGISTRY[which]


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(members.__path__):
        importlib.import_module(f"{members.__name__}.{module.name}")
