"""The model card: README.md of a folder with a saved model."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from secateur.report.record import Record, as_record
from secateur.report.table import columns, footnotes, rows
from secateur.report.units import plain, scalar
from secateur.report.verdict import verdict

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
_MOST = 20  # locked names in the card; the page has them all


def card(record: Record | Mapping[str, Any]) -> str:
    """Return the card as Markdown with a YAML head, as model hubs read it.

    Names from outside are escaped, so that no Markdown or HTML in them takes effect.

    Example:
        >>> from secateur.report import State, Record
        >>> record = Record("Half a net", "zoo:resnet20", State(200), State(100))
        >>> [line for line in card(record).splitlines() if line.startswith("| Par")]
        ['| Parameters | 200 | 100 | 2.0× fewer |']
    """
    record = as_record(record)
    said = verdict(record)
    parts = [
        _head(record),
        f"# {_text(record.title)}",
        f"**{_text(said.headline)}.** {_text(said.proof)}",
        *(f"> {_text(warning)}" for warning in said.warnings),
        _measured(record),
        _text(" ".join(footnotes(record))),
        "## Load it",
        "Weights are safetensors and the plan is JSON; nothing in this folder can run code.",
        _code(
            "import secateur as sec\n\n"
            'model = sec.load(build_model(), "path/to/this/folder")'
            f"  # build_model() makes {plain(record.model)}",
            "python",
        ),
    ]
    if record.settings:
        parts += ["## How it was pruned", _list(record.settings)]
    if record.locked:
        shown = {entry.name: entry.reason for entry in record.locked[:_MOST]}
        parts += ["## Left alone", _list(shown)]
        if len(record.locked) > _MOST:
            parts.append(f"and {len(record.locked) - _MOST} more.")
    if record.notes:
        parts += ["## Notes", "\n".join(f"- {_text(note)}" for note in record.notes)]
    if record.data is not None:
        data = _text(record.data.description)
        parts += ["## Data", f"{data} (`{_raw(record.data.hash)}`)" if record.data.hash else data]
    again = dict(record.environment)
    if record.seed is not None:
        again["seed"] = record.seed
    if record.command or again:
        parts.append("## Run it again")
    if record.command:
        parts.append(_code(record.command, "sh"))
    if again:
        parts.append(_list(again))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record: Record) -> str:
    values = {
        "library_name": "secateur",
        "tags": ["pruning", "pytorch", "safetensors"],
        "base_model": plain(record.model),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _measured(record: Record) -> str:
    names = ("", *columns(record), "Change")
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    for row in rows(record):
        cells = (f"{c.text} ({c.detail})" if c.detail else c.text for c in row.cells)
        lines.append(f"| {_text(row.label)} | {' | '.join(cells)} | {row.change} |")
    return "\n".join(lines)


def _list(pairs: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(scalar(value))}" for name, value in pairs.items())


def _text(content: str) -> str:
    """Escape Markdown and HTML; a name stays on its line."""
    return _SPECIAL.sub(r"\\\1", " ".join(plain(content).split()))


def _raw(content: str) -> str:
    return plain(content).replace("`", "'").replace("\n", " ")


def _code(content: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain(content)}\n{fence}"
