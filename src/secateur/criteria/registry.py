"""What a criterion is, and where it is found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from secateur import criteria
from secateur.engine.statistics import AT_HAND, STATISTICS, Statistics, Stats
from secateur.errors import ConfigError
from secateur.names import unknown
from secateur.typed import check

Level = Literal["element", "filter", "input", "norm", "class", "model"]
Needs = frozenset[str] | Callable[..., Collection[str]]
CriterionLike = "str | tuple[str, Mapping[str, Any]] | Criterion | Callable[..., Tensor]"
F = TypeVar("F", bound=Callable[..., "Tensor | dict[str, Tensor]"])
_REGISTRY: dict[str, Criterion] = {}
_ALIASES: dict[str, str] = {}


@dataclass(frozen=True)
class Criterion:
    """A pure function from tensors and statistics to scores, higher = keep, and how to sum it up.

    What the function is called with depends on ``level``:

    | level | called with | gives |
    |---|---|---|
    | element | a weight of any shape, its ``Stats`` | a score an element |
    | filter | a matrix (units, elements of each unit) of one layer | a score a row |
    | input | the matrix (outputs, inputs) of a layer that takes a class in, its ``Stats`` | a score
      an input; a unit gets the mean over its inputs |
    | norm | the scale of a batch norm, its ``Stats`` (with ``shift``) | a score a channel |
    | class | the ``Stats`` of a unit class | a score a unit |
    | model | the model, parameters; data, loss, generator | scores of elements by name |

    Attributes:
        name: As the user writes it.
        function: The formula.
        level: What it scores.
        needs: Statistics to gather (keys of ``secateur.engine.statistics.STATISTICS``).
        paper: Where it was published.
        reduction: How the scores of coupled tensors become one: sum, mean, max, min, prod, first.
        normalizer: How the scores of a class are scaled before classes are compared.
        biases: True if one-dimensional biases and shifts are scored too.
        vectors: Of elements: the size of their sum over a row or column counts, signs included.
        elementwise: True if an element's score depends on that element alone, so that a weight may
            be scored piece by piece.
        options: Keyword arguments of the function.
        exchange: Of a class: from the mask of what stays and the ``Stats`` to another mask with as
            many units, where what goes together matters, not only what each unit is worth.
    """

    name: str
    function: Callable[..., Any]
    level: Level = "element"
    needs: frozenset[str] = frozenset()
    paper: str = ""
    reduction: str = "sum"
    normalizer: str = "none"
    biases: bool = False
    vectors: bool = False
    elementwise: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_of: Callable[..., Collection[str]] | None = None
    exchange: Callable[[Tensor, Stats], Tensor] | None = None

    def __call__(self, tensor: Tensor | None = None, stats: Stats | None = None) -> Tensor:
        """The scores, float32.

        Raises:
            ConfigError: The function gives something else than a score for each.
        """
        if tensor is not None and tensor.is_complex() and self.level == "element":
            return self(in_parts(tensor), stats).sum(-1)
        given = (stats,) if self.level == "class" else (tensor, stats)
        scores = self.function(*given, **self.options)
        want = None if tensor is None else _SHAPES[self.level](tuple(tensor.shape))
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if isinstance(got, str) or (want is not None and got != want):
            raise ConfigError(
                f"criterion {self.name} gave {got} instead of a tensor of one score for each "
                f"{self.level}" + (f", {want}" if want is not None else "")
            )
        return scores.float()

    def settled(self, masks: dict[str, Tensor], statistics: Statistics | None) -> dict[str, Tensor]:
        """Masks of classes with units exchanged, where the criterion does that."""
        if self.exchange is None or statistics is None:
            return masks
        known = statistics.classes
        return {
            name: self.exchange(stays, known[name])
            if name in known and stays.shape == (known[name].size,)
            else stays
            for name, stays in masks.items()
        }

    def with_options(self, **options: Any) -> Criterion:
        """The same criterion with other options.

        Raises:
            ConfigError: The criterion has no such option, or its value is of another type.
        """
        allowed = _options_of(self.function)
        for key in options:
            if key not in allowed:
                has = f"it has {', '.join(allowed)}" if allowed else "it has none"
                raise ConfigError(unknown(f"option of criterion {self.name}", key, allowed, has))
        check(f"criterion {self.name}", self.function, options)
        merged = {**self.options, **options}
        needs = self.needs
        if self.needs_of is not None:
            accepted = _options_of(self.needs_of)
            needs = frozenset(self.needs_of(**{k: v for k, v in merged.items() if k in accepted}))
        return replace(self, options=merged, needs=needs)


def in_parts(tensor: Tensor) -> Tensor:
    """A complex tensor as the two numbers that each element is: formulas are about real weights."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


# What a criterion of each level gives a score for, of a weight of some shape.
_SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "element": lambda shape: shape,
    "filter": lambda shape: shape[:1],
    "input": lambda shape: shape[1:],
    "norm": lambda shape: shape,
}


def criterion(
    *,
    level: Level = "element",
    needs: Collection[str] | Callable[..., Collection[str]] = frozenset(),
    paper: str = "",
    reduction: str = "sum",
    normalizer: str = "none",
    biases: bool = False,
    vectors: bool = False,
    elementwise: bool = False,
    aliases: tuple[str, ...] = (),
    exchange: Callable[[Tensor, Stats], Tensor] | None = None,
) -> Callable[[F], F]:
    """Register a function as a criterion under its own name; the function itself is unchanged.

    Args:
        level, paper, reduction, normalizer, biases, vectors, elementwise, exchange: See
            ``Criterion``.
        needs: Names of statistics, or a function from options to such names.
        aliases: Other names.

    Example:
        >>> @criterion(paper="none")
        ... def cubed(weight, stats=None):
        ...     return weight.abs() ** 3
        >>> find("cubed").level
        'element'
    """

    def register(function: F) -> F:
        name = getattr(function, "__name__", type(function).__name__)
        of = needs if callable(needs) else None
        names = frozenset(of() if of is not None else needs)  # type: ignore[arg-type]
        for key in names - STATISTICS.keys() - AT_HAND.keys():
            raise ConfigError(unknown(f"statistic that criterion {name} needs", key, STATISTICS))
        about = level, names, paper, reduction, normalizer, biases, vectors, elementwise
        _REGISTRY[name] = Criterion(name, function, *about, needs_of=of, exchange=exchange)
        _ALIASES.update(dict.fromkeys(aliases, name))
        return function

    return register


def names() -> list[str]:
    """List the criteria.

    Example:
        >>> "l2" in names()
        True
    """
    _load()
    return sorted(_REGISTRY)


def find(which: Any) -> Criterion:
    """The criterion that a user means.

    Args:
        which: A name (``"l2"``), a name with options (``("lp", {"p": 3})``), a ``Criterion``, or a
            function ``(weight, stats) -> scores of the weight's shape``.

    Raises:
        ConfigError: There is no such criterion or option.

    Example:
        >>> find(("lp", {"p": 3}))(torch.tensor([-2.0]))
        tensor([8.])
    """
    _load()
    if isinstance(which, Criterion):
        return which
    if isinstance(which, str):
        name = _ALIASES.get(which, which)
        if name not in _REGISTRY:
            raise ConfigError(unknown("criterion", which, [*_REGISTRY, *_ALIASES]))
        return _REGISTRY[name]
    if isinstance(which, tuple | list) and len(which) == 2 and isinstance(which[1], Mapping):
        return find(which[0]).with_options(**which[1])
    if callable(which):
        name = getattr(which, "__name__", type(which).__name__)
        registered = _REGISTRY.get(name)
        if registered is not None and registered.function is which:
            return registered
        return Criterion(name, which)
    raise ConfigError(
        f'criterion={which!r}: give a name ("l2"), a name with options (("lp", {{"p": 3}})), '
        "or a function of (weight, stats)"
    )


def _options_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty and p.name != "stats"]


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(criteria.__path__):
        importlib.import_module(f"{criteria.__name__}.{module.name}")
