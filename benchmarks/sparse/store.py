"""The finished cells: one line of JSON each; of several of the same key the last counts."""

import json
from pathlib import Path
from typing import Any

CELLS = Path(__file__).parent / "cells.jsonl"


def load(path: Path = CELLS) -> dict[str, dict[str, Any]]:
    """By key; a last line that a kill has cut is left out."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["key"]] = row
    return found
