"""Command-line flags for the keys of the configuration, and how their texts are read."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.cli import config
from secateur.cli.yaml import value
from secateur.errors import ConfigError

_GROUPS = {
    "model and data": (
        "original weights inputs batch data batch_size loss evaluate metric device dtype"
    ),
    "what goes": (
        "amount keep method criterion scope ignore overrides kinds statistical max_ratio min_width "
        "round_to reduction normalizer"
    ),
    "when, and what then": "schedule steps recovery",
    "the run": "verify repeats warmup sensitivity seed threads out",
}
_NAMES = {"inputs": "input", "overrides": "override", "kinds": "kind"}  # one value a flag


def add(parser: argparse.ArgumentParser, only: str = "") -> None:
    """Add a flag for every key of the configuration, or for those that are named.

    A flag that is not given leaves no trace, so that it does not hide what a file says.
    """
    for title, keys in _GROUPS.items():
        wanted = [key for key in keys.split() if not only or key in only.split()]
        if wanted:
            group = parser.add_argument_group(title)
            for key in wanted:
                _add(group, key)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The keys that flags were given for; the model has none.

    Raises:
        ConfigError: A text that cannot be read.
    """
    named = [key for key in config.KEYS if key != "model" and hasattr(options, key)]
    return {key: _read(key, getattr(options, key)) for key in named}


def _add(group: Any, key: str) -> None:
    entry = config.KEYS[key]
    hint = config.HINTS[key]
    flag = "--" + _NAMES.get(key, key).replace("_", "-")
    shared: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
    about = entry.metadata["help"]
    if hint is bool:
        shared["help"] = f"{about} (default: {'yes' if entry.default else 'no'})"
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
        return
    metavar = entry.metadata["metavar"]
    if hint in (int, int | None):
        shared |= {"type": int, "metavar": metavar or "N"}
    elif hint in (float, float | None):
        shared |= {"type": float, "metavar": metavar or "X"}
    elif hint in (str, str | None):
        shared |= {"metavar": metavar or key.upper()}
    else:
        shared |= {"action": "append", "metavar": metavar or "KEY=VALUE"}
    if isinstance(entry.default, int | float | str):
        about += f" (default: {entry.default})"
    group.add_argument(flag, help=about.replace("%", "%%"), **shared)


def _read(key: str, texts: Any) -> Any:
    """The value of a key from what its flag was given."""
    where = "--" + _NAMES.get(key, key).replace("_", "-")
    if key in ("keep", "overrides", "metric"):
        return dict(_pair(text, where) for text in texts)
    if key == "sensitivity":
        return [value(part, where) for text in texts for part in text.split(",")]
    if key in ("method", "criterion", "recovery"):
        named = [named_options(text, where) for text in texts]
        return named[0] if len(named) == 1 else named
    return texts


def _pair(text: str, where: str) -> tuple[str, Any]:
    name, equals, rest = text.rpartition("=")
    if not equals or not name:
        raise ConfigError(f"{where} {text!r}: write NAME=VALUE")
    return name, value(rest, where)


def named_options(text: str, where: str) -> Any:
    """A name with options: ``fine-tune:epochs=3,lr=0.02``; ``base.epochs=3`` goes one deeper.

    Raises:
        ConfigError: A part that is no ``option=value``.

    Example:
        >>> named_options("distil:temperature=2,base.epochs=3", "--recovery")
        {'distil': {'temperature': 2, 'base': {'epochs': 3}}}
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return name
    options: dict[str, Any] = {}
    for part in rest.split(","):
        key, found = _pair(part, where)
        *path, last = key.split(".")
        place = options
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{where} {text!r}: {step!r} has a value and options of its own")
        place[last] = found
    return {name: options}
