"""How a pruned model gets its accuracy back; one member a file, found by name."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from secateur.errors import ConfigError
from secateur.names import unknown
from secateur.recovery.bn_recalibrate import BNRecalibrate
from secateur.recovery.distil import Distil
from secateur.recovery.fine_tune import FineTune
from secateur.recovery.from_scratch import FromScratch
from secateur.recovery.least_squares import LeastSquares
from secateur.recovery.none import NoRecovery
from secateur.recovery.registry import Recovery, member, members
from secateur.recovery.rewind import Rewind
from secateur.typed import check

__all__ = [
    "BNRecalibrate",
    "Distil",
    "FineTune",
    "FromScratch",
    "LeastSquares",
    "NoRecovery",
    "Recovery",
    "Rewind",
    "member",
    "names",
    "recovery",
]


def names() -> list[str]:
    """The names that ``recovery`` knows: every registered member of this folder, and of users."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(members)


def recovery(name: str | Recovery | None, **options: Any) -> Recovery:
    """The recovery called ``name``, with its options; a ready one is given back.

    A mapping given for an option that is itself a recovery holds that one's options
    (``base={"epochs": 3}``).

    Raises:
        ConfigError: an unknown name or option, whose message names the nearest, or a value of
            another type.

    Example:
        >>> recovery("distil", temperature=2.0, base={"epochs": 3}).base.epochs
        3
    """
    if name is None:
        name = "none"
    if not isinstance(name, str):
        if options:
            raise ConfigError(f"{name!r} is ready made: options {sorted(options)} have no place.")
        return name
    if name not in names():
        raise ConfigError(unknown("recovery", name, names()))
    return _made(name, options, f"recovery {name}")


def _made(name: str, options: dict[str, Any], where: str) -> Recovery:
    cls = members[name]
    known = {field.name: field for field in fields(cls)}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(unknown(f"option of recovery {name!r} called", option, known))
        default = known[option].default
        if isinstance(value, Mapping) and isinstance(default, Recovery):
            kind = next(key for key, value_ in members.items() if value_ is type(default))
            options[option] = _made(kind, dict(value), f"{where}: {option}")
    check(where, cls, options)
    return cls(**options)  # type: ignore[no-any-return]
