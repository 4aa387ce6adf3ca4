"""Recoveries that go on after a kill, because each has a folder for its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from secateur import recovery as recoveries
from secateur.cli.arguments import pair
from secateur.recovery import Recovery
from secateur.recovery.nested import changed
from secateur.recovery.registry import members


def healers(
    named: Any,
    folder: Path,
    *,
    seed: int,
    loss: Callable[..., Any] | None = None,
    progress: bool = True,
) -> list[Recovery]:
    """The recoveries that a configuration names, in turn.

    Args:
        named: A name, ``{name: options}``, or a list of these.
        folder: For the checkpoints.
        seed: Of those that have one and are given none.
        loss: Of those that train and are given none.
        progress: Show their bars.

    Raises:
        ConfigError: An unknown name or option, or a value of the wrong type.
    """
    found = [] if named is None else named if isinstance(named, list) else [named]
    result: list[Recovery] = []
    for number, one in enumerate(found):
        name, options = pair(one, "recovery")
        if name == "none":
            continue
        healer = recoveries.recovery(name, **_seeded(name, options, seed))
        settings: dict[str, Any] = {"progress": progress, "checkpoint": folder / f"{number}-{name}"}
        result.append(changed(healer, _filling(settings | ({"loss": loss} if loss else {}))))
    return result


def _filling(settings: Mapping[str, Any]) -> Callable[[Field[Any], Any], Any]:
    """Settings where none were given, except that the run's own checkpoints win."""

    def change(entry: Field[Any], value: Any) -> Any:
        free = entry.name == "checkpoint" or value == entry.default
        return settings[entry.name] if entry.name in settings and free else value

    return change


def _seeded(name: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The options with the run's seed, wherever the user gave none."""
    result = dict(options)
    recoveries.names()  # finds the members
    for entry in fields(members[name]) if name in members else ():
        inner = next((n for n, kind in members.items() if type(entry.default) is kind), None)
        if entry.name == "seed":
            result.setdefault("seed", seed)
        elif inner is not None and isinstance(result.get(entry.name, {}), Mapping):
            result[entry.name] = _seeded(inner, result.get(entry.name, {}), seed)
    return result
