"""A recovery with other settings, also of the recoveries inside it."""

from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from secateur.recovery.registry import Recovery


def changed(healer: Any, change: Callable[[Field[Any], Any], Any]) -> Any:
    """The recovery with every setting as ``change`` of its field and value says, inside it too."""
    if not is_dataclass(healer) or isinstance(healer, type):
        return healer
    found = {}
    for entry in fields(healer):
        value = getattr(healer, entry.name)
        inside = isinstance(value, Recovery)
        new = changed(value, change) if inside else change(entry, value)
        if new is not value:
            found[entry.name] = new
    return replace(healer, **found) if found else healer


def in_turn(healer: Any, part: str) -> Any:
    """The recovery with its checkpoint, if it writes one, in a folder inside the one given.

    Healing after every step of a schedule, or by several recoveries in turn, needs a checkpoint
    each: after a kill the same calls come in the same order, so that finished ones are read back
    and the one that was broken off goes on.
    """

    def change(entry: Field[Any], value: Any) -> Any:
        return Path(value, part) if entry.name == "checkpoint" and value is not None else value

    return changed(healer, change)
