"""What a granularity is: which elements go together; and where it is found by name.

A granularity cuts the elements of all prunable parameters into *units*. Units live in *spaces*: a
space is one parameter for the granularities of a single tensor (a row, a block, a kernel), a unit
class of the graph for those of coupled tensors (a channel). What is chosen is units; what is stored
is masks of elements.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur import granularity as members
from secateur.criteria.registry import Criterion
from secateur.engine.statistics import Stats
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.names import unknown

Elements = Mapping[str, Tensor]
_REGISTRY: dict[str, Callable[..., Any]] = {}


class Units(Protocol):
    """The units of one network at one granularity.

    Attributes:
        shapes: Space -> the shape that an allocation reads (of the parameter, or of the class's
            first layer).
        sizes: Space -> elements of one unit.
        counts: Space -> number of units.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    def reduce(self, elements: Elements) -> dict[str, Tensor]:
        """Scores of elements, by parameter, to mean scores of units, by space: shape (count,)."""

    def spread(self, units: Mapping[str, Tensor], *, alike: bool = False) -> dict[str, Tensor]:
        """Values of units, by space, to values of elements, by parameter; differentiable.

        Masks (bool) reach all elements of a unit. Other values are factors, which act once on the
        way of a unit: only where it is last made, with 1 before; unless all are to be ``alike``.
        """

    def score(self, criterion: Criterion, parameters: Elements) -> dict[str, Tensor]:
        """Scores of units, by space, by a criterion that scores no elements (FPGM, norm scales)."""

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Which units stay where the granularity itself says how many; None where it does not."""


@dataclass(frozen=True)
class TensorUnits:
    """Units inside single parameters, by the unit of each element.

    Attributes:
        of: Parameter -> int64 unit of every element, flat; None where each element is its own.
        shapes, sizes, counts: See ``Units``.
    """

    of: Mapping[str, Tensor | None]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    counts: Mapping[str, int]

    def reduce(self, elements: Elements) -> dict[str, Tensor]:
        found = {}
        for name, unit in self.of.items():
            flat = elements[name].flatten().float()
            if unit is not None:
                unit = unit.to(flat.device)
                total = flat.new_zeros(self.counts[name]).index_add(0, unit, flat)
                flat = total / self.sizes[name]
            found[name] = flat
        return found

    def spread(self, units: Mapping[str, Tensor], *, alike: bool = False) -> dict[str, Tensor]:
        found = {}
        for name, values in units.items():
            unit = self.of[name]
            flat = values if unit is None else values[unit.to(values.device)]
            found[name] = flat.reshape(self.shapes[name])
        return found

    def score(self, criterion: Criterion, parameters: Elements) -> dict[str, Tensor]:
        if criterion.level != "filter" or any(unit is None for unit in self.of.values()):
            raise ConfigError(
                f"criterion {criterion.name!r} scores a {criterion.level}, which these units are "
                "not: use granularity='channel'"
            )
        found = {}
        for name, unit in self.of.items():
            assert unit is not None
            flat = parameters[name].detach().flatten()
            rows = flat[unit.argsort(stable=True).to(flat.device)]
            found[name] = criterion(rows.view(self.counts[name], self.sizes[name]), Stats(name))
        return found

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None


def tensor_units(
    elements: Elements, unit_of: Callable[[tuple[int, ...]], Tensor | None]
) -> TensorUnits:
    """Units inside single parameters, from a function of a shape to the unit of each element."""
    shapes = {n: tuple(t.shape) for n, t in elements.items()}
    of = {n: unit_of(s) for n, s in shapes.items()}
    counts = {
        n: elements[n].numel() if u is None else int(u.max()) + 1 if u.numel() else 0
        for n, u in of.items()
    }
    sizes = {n: max(elements[n].numel() // max(counts[n], 1), 1) for n in shapes}
    return TensorUnits(of, shapes, sizes, counts)


def granularity(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function from ``(parameters, graph, **options)`` to ``Units``.

    Example:
        >>> @granularity("half")
        ... def half(parameters, graph=None):
        ...     return tensor_units(parameters, lambda s: grid(s, (s[0] // 2, *s[1:])))
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _REGISTRY[name] = function
        return function

    return register


def names() -> list[str]:
    """List the granularities.

    Example:
        >>> "element" in names()
        True
    """
    _load()
    return sorted(_REGISTRY)


def needs_graph(which: Any) -> bool:
    """Whether the units are coupled through the graph, so that example inputs are needed."""
    name = which[0] if isinstance(which, tuple | list) else which
    return name in ("channel", "head", "layer")


def units(which: Any, parameters: Elements, graph: Graph | None = None) -> Units:
    """The units of these parameters at a granularity.

    Args:
        which: A name; a name with options, as ``("block", {"rows": 4, "columns": 4})``; or a
            pattern ``"2:4"``.
        parameters: Name -> parameter.
        graph: For granularities of coupled tensors.

    Raises:
        ConfigError: There is no such granularity or option, it does not fit a parameter, or it
            needs a graph.

    Example:
        >>> found = units("row", {"weight": torch.ones(4, 3)})
        >>> found.counts, found.sizes
        ({'weight': 4}, {'weight': 3})
    """
    _load()
    options: Mapping[str, Any] = {}
    if isinstance(which, tuple | list) and len(which) == 2 and isinstance(which[1], Mapping):
        which, options = which
    if isinstance(which, str) and (match := re.fullmatch(r"(\d+):(\d+)", which)):
        which, options = "n:m", {"n": int(match[1]), "m": int(match[2]), **options}
    if callable(which):
        return tensor_units(parameters, which)
    if which not in [*_REGISTRY]:  # whatever it is, hashable or not
        raise ConfigError(unknown("granularity", which, _REGISTRY))
    if needs_graph(which) and graph is None:
        raise ConfigError(f"granularity {which!r} follows coupled tensors: give example_inputs")
    try:
        return _REGISTRY[which](parameters, graph, **options)
    except TypeError as error:
        raise ConfigError(f"granularity {which!r}: {error}") from error


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(members.__path__):
        importlib.import_module(f"{members.__name__}.{module.name}")


def grid(shape: tuple[int, ...], blocks: tuple[int, ...]) -> Tensor:
    """The unit of each element, flat, when a tensor is tiled by blocks of this many positions.

    Raises:
        ConfigError: The blocks do not divide the shape.

    Example:
        >>> grid((2, 4), (2, 2))
        tensor([0, 0, 1, 1, 0, 0, 1, 1])
    """
    if any(n % b for n, b in zip(shape, blocks, strict=True)):
        raise ConfigError(f"blocks of {list(blocks)} do not tile a weight of shape {list(shape)}")
    unit = torch.zeros((), dtype=torch.long)
    for n, b in zip(shape, blocks, strict=True):
        unit = unit.unsqueeze(-1) * (n // b) + torch.arange(n) // b
    return unit.flatten()
