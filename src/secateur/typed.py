"""Whether a value fits an annotation, for options that come from a call, a file or the shell."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from secateur.errors import ConfigError

_WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    types.NoneType: "none", Path: "a path",
}  # fmt: skip


def check(what: str, kind: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options whose values are not of the types that a function or a class says.

    Raises:
        ConfigError: A value of another type.
    """
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError):  # of a user's own: a name for type checkers only, or a partial
        return
    for name, value in options.items():
        if name in hints and not fits(value, hints[name]):
            raise ConfigError(f"{what}: {name} should be {words(hints[name])}, not {value!r}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of an annotated type; a whole number is a number, too.

    What YAML cannot say (functions, objects) fits nothing; an unknown annotation fits everything.

    Example:
        >>> fits(3, float | None), fits("3", float | None), fits([0.5], Sequence[float])
        (True, False, True)
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items()
        )
    if origin in (Sequence, list, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        return all(fits(item, inner[0]) for item in value)
    if origin is Callable or kind is Callable:
        return callable(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str | Path)
    if kind in (str, bool, types.NoneType):
        return isinstance(value, kind)
    return True


def words(kind: Any) -> str:
    """An annotation in words, for messages.

    Example:
        >>> words(float | None)
        'a number or none'
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        said = [words(option) for option in inner]
        return " or ".join(dict.fromkeys(text for text in said if text))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is Mapping:
        return "a mapping from names to " + words(inner[1])
    if origin in (Sequence, list, tuple):
        return "a list of " + words(inner[0])
    return _WORDS.get(kind, "" if origin is Callable else "something else")
