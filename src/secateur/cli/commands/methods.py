"""List the methods, criteria, scopes, schedules and recoveries that there are."""

from __future__ import annotations

import argparse
import inspect
import typing
from typing import Any

from secateur.cli.answer import Answer
from secateur.typed import fits

EXAMPLES = ("secateur methods", "secateur methods criterion --json", "secateur methods during")
_KINDS = ("method", "criterion", "scope", "schedule", "recovery")
_STAGES = ("before", "during", "after", "runtime")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which kind, or which stage of the methods, to list."""
    parser.add_argument(
        "kind",
        nargs="?",
        choices=(*_KINDS, *_STAGES),
        help="only this kind, or the methods of this stage; default: all",
    )


def run(options: argparse.Namespace) -> Answer:
    """List what the registries hold."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if options.kind in _STAGES:
        found = {"method": _method(options.kind)}
    else:
        kinds = [options.kind] if options.kind else _KINDS
        found = {kind: globals()[f"_{kind}"]() for kind in kinds}
    tables = []
    for kind, rows in found.items():
        columns = [key for key in rows[0] if any(row[key] for row in rows)]
        table = Table(title=f"--{kind}", title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for row in rows:
            cells = (row[key] for key in columns)
            table.add_row(*(Text(c if isinstance(c, str) else ", ".join(c)) for c in cells))
        tables.append(table)
    return Answer(found, Group(*tables))


def _method(only: str | None = None) -> list[dict[str, Any]]:
    from secateur.methods.registry import STAGES, entry, names

    return [
        {
            "name": e.name,
            "stage": e.stage,
            "about": e.about,
            "options": _options(e.function),
            "paper": e.paper,
        }
        for stage in ([only] if only else STAGES)
        for e in map(entry, names(stage))
    ]


def _criterion() -> list[dict[str, Any]]:
    from secateur import criteria

    chosen = [criteria.find(name) for name in criteria.names()]
    return [
        {
            "name": c.name,
            "about": _about(c.function),
            "options": _options(c.function),
            "needs": sorted(c.needs),
            "paper": c.paper,
        }
        for c in chosen
    ]


def _scope() -> list[dict[str, Any]]:
    from secateur.scope.registry import find, names

    return [{"name": name, "about": _about(find(name))} for name in names()]


def _schedule() -> list[dict[str, Any]]:
    from secateur.schedule.registry import find, names

    return [{"name": name, "about": _about(find(name, 0.5).curve)} for name in names()]


def _recovery() -> list[dict[str, Any]]:
    from secateur.recovery import names
    from secateur.recovery.registry import members

    kinds = {name: members[name] for name in names()}
    return [
        {"name": name, "about": _about(kind), "options": _options(kind)}
        for name, kind in kinds.items()
    ]


def _about(what: Any) -> str:
    """What a member does: the first line of its file, or its own where it is a user's."""
    module = inspect.getmodule(what)
    ours = module is not None and module.__name__.startswith("secateur.")
    text = inspect.getdoc(module if ours else what) or ""
    return text.partition("\n")[0]


def _options(what: Any) -> list[str]:
    """The options that can be written down; functions and objects cannot."""
    hints = typing.get_type_hints(what if inspect.isfunction(what) else what.__init__)
    return [
        p.name
        for p in inspect.signature(what).parameters.values()
        if p.default is not p.empty
        and p.name not in ("stats", "checkpoint", "progress")
        and any(fits(value, hints.get(p.name)) for value in (1, 0.5, True, "text", ["text"]))
    ]
