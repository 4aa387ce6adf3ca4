"""Recoveries that go on after a kill: each time one is used, it has a checkpoint of its own."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur import recovery as recoveries
from secateur.cli import typed
from secateur.cli.arguments import pair
from secateur.errors import ConfigError
from secateur.recovery import Recovery
from secateur.recovery.registry import members


class Resumable:
    """A recovery that writes checkpoints, into another folder every time.

    ``sec.prune`` heals after every step of a schedule; after a kill the same calls come in the same
    order, so that finished steps are read back and the one that was broken off goes on.
    """

    def __init__(self, healer: Recovery, folder: Path, **settings: Any) -> None:
        self.healer, self.folder, self.settings = healer, folder, settings
        self.times = 0

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Heal ``model`` in place, or take what was healed before the kill."""
        self.times += 1
        healer = _with(self.healer, checkpoint=self.folder / str(self.times), **self.settings)
        return healer.heal(model, plan, data, teacher)


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
        _check(healer, f"recovery {name}")
        settings = {"progress": progress} | ({"loss": loss} if loss else {})
        result.append(Resumable(healer, folder / f"{number}-{name}", **settings))
    return result


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


def _check(healer: Any, where: str) -> None:
    if not is_dataclass(healer):
        return
    hints = typing.get_type_hints(type(healer))
    for entry in fields(healer):
        value = getattr(healer, entry.name)
        if isinstance(value, Recovery):
            _check(value, f"{where}: {entry.name}")
        elif not typed.fits(value, hints[entry.name]):
            raise ConfigError(
                f"{where}: {entry.name} should be {typed.words(hints[entry.name])}, not {value!r}"
            )


def _with(healer: Any, **settings: Any) -> Any:
    """The recovery, and those inside it, with settings that they were not given."""
    if not is_dataclass(healer) or isinstance(healer, type):
        return healer
    changes = {}
    for entry in fields(healer):
        value = getattr(healer, entry.name)
        if isinstance(value, Recovery):
            changes[entry.name] = _with(value, **settings)
        elif entry.name in settings and (entry.name == "checkpoint" or value == entry.default):
            changes[entry.name] = settings[entry.name]
    return replace(healer, **changes)
