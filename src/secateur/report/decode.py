"""Frozen dataclasses to JSON and back, checked against their annotations."""

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from secateur.errors import ConfigError, StoreError


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what JSON has."""
    if is_dataclass(value):
        return {entry.name: encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [encode(entry) for entry in value]
    return _simple(value)


def _simple(value: Any) -> Any:
    """Drop what subclasses add: torch's version is a str and numpy's float64 a float."""
    kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into the annotated type ``kind``; ``where`` names the place in errors."""
    value = _simple(value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        options = [option for option in arguments if option is not types.NoneType]
        if len(options) == 1:
            return decode(options[0], value, where)
        if isinstance(value, float):
            return decode(float, value, where)
        if type(value) in options:
            return value
        raise _mistyped(where, "text, a number, true, false or null", value)
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _mistyped(where, "an object", value)
        return {
            decode(str, key, f"{where} (a key)"): decode(arguments[1], entry, f"{where}.{key}")
            for key, entry in value.items()
        }
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    return _decode_scalar(kind, value, where)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _mistyped(where, "a list", value)
    if arguments[-1] is Ellipsis:
        kinds = arguments[:1] * len(value)
    elif len(arguments) == len(value):
        kinds = arguments
    else:
        raise StoreError(f"{where} has {len(value)} entries; {len(arguments)} belong there.")
    return tuple(
        decode(kind, entry, f"{where}[{i}]")
        for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _mistyped(where, "an object", value)
    known = {entry.name: entry for entry in fields(kind)}
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(known)}."
            raise StoreError(f"{where}.{name} is not an entry of a record.{hint}")
    for name, entry in known.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and name not in value:
            raise StoreError(f"{where}.{name} is missing; run the command that made it again.")
    hints = typing.get_type_hints(kind)
    decoded = {name: decode(hints[name], entry, f"{where}.{name}") for name, entry in value.items()}
    try:
        return kind(**decoded)
    except ConfigError as error:
        raise StoreError(f"{where}: {error}.") from error


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise StoreError(f"{where} is {value}; write null for what has no finite value.")
        return float(value)
    if type(value) is not kind:
        raise _mistyped(where, _NAMES[kind], value)
    return value


def _mistyped(where: str, expected: str, value: Any) -> StoreError:
    shown = repr(value)
    return StoreError(f"{where} should be {expected}, not {shown[:60]}{'…' * (len(shown) > 60)}.")
