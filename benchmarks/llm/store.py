"""Finished cells, one JSON object a line; the newest of each counts."""

import json
from pathlib import Path
from typing import Any

CELLS = Path(__file__).parent / "cells.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "llm.md"
_KEY = ("method", "target", "by", "seed", "options", "arguments")


def key(cell: dict[str, Any]) -> str:
    """What tells cells apart."""
    return json.dumps({name: cell[name] for name in _KEY if cell.get(name)}, sort_keys=True)


def load() -> dict[str, dict[str, Any]]:
    """All finished cells by their key."""
    if not CELLS.exists():
        return {}
    cells = [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()]
    return {key(cell): cell for cell in cells}


def append(cell: dict[str, Any]) -> None:
    """Add a finished cell."""
    with CELLS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell) + "\n")
