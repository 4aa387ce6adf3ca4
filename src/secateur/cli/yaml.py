"""YAML in and out: plain values only, no key twice, and 1e-3 is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import ConfigError

_MOST = 1 << 20  # bytes; a configuration has a few hundred


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what it would silently take otherwise."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for text; everybody who writes a learning rate means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z"),
    list("-+0123456789."),
)


def load(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: It cannot be read, is no YAML, or holds anything but a mapping.
    """
    try:
        file = Path(path)
        if file.stat().st_size > _MOST:
            raise ConfigError(f"{path} is too large for a configuration")
        found = value(file.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the configuration {path} cannot be read: {reason}") from error
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path} should hold `key: value` lines, not {type(found).__name__}")
    return dict(found)


def value(text: str, where: str) -> Any:
    """The plain value that a YAML text means.

    Raises:
        ConfigError: It is not YAML, or asks for anything but plain values.

    Example:
        >>> value("{epochs: 3, lr: 1e-3}", "--recovery")
        {'epochs': 3, 'lr': 0.001}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}{place}: {problem}") from error


def dump(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text
