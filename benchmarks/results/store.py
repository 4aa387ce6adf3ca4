"""Finished cells as small JSON files, written whole or not at all."""

import json
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from benchmarks.results.cell import Cell

CELLS = Path(__file__).parent / "cells"
DEFAULTS = {
    f.name: list(f.default) if isinstance(f.default, tuple) else f.default
    for f in fields(Cell)
    if f.default is not MISSING
}


def read(cell: Cell, folder: Path = CELLS) -> dict[str, Any] | None:
    """The result of a cell, or None if it is not finished, damaged, or of other settings."""
    try:
        result = json.loads((folder / f"{cell.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stored = DEFAULTS | result.get("settings", {})  # a field that is newer than the file
    return result if stored == cell.settings() else None


def write(cell: Cell, result: dict[str, Any], folder: Path = CELLS) -> Path:
    """Write under a temporary name, then rename: a kill leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path
