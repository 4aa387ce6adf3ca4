"""Finished results: one JSON line a model, sorted, in a file that is kept with the source.

A new machine resumes from them. A row says at which commit it was measured.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
NOTES = 3  # what is given back looks alike in all layers

Row = dict[str, Any]


def load(path: Path = RESULTS) -> dict[tuple[str, str], Row]:
    """Read the result of every model that has one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = map(json.loads, lines)
    return {(row["set"], row["name"]): row for row in rows}


def save(rows: Iterable[Row], path: Path = RESULTS) -> None:
    """Write all results under a temporary name, then rename: a kill leaves the old file or this."""
    ordered = sorted(map(compact, rows), key=lambda row: (row["set"], row["name"]))
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
    temporary.replace(path)


def compact(row: Row) -> Row:
    """A result without tracebacks and with three figures of every number."""
    return {key: _short(value) for key, value in row.items() if key not in ("trace", "stage")}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {k: _short(v[:NOTES] if k == "notes" else v) for k, v in value.items()}
    return value
