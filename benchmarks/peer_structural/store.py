"""Finished cells, one JSON object a line: a run that is killed loses only the cell it was at."""

import json
from pathlib import Path
from typing import Any

CELLS = Path(__file__).parent / "cells"


def load(name: str, folder: Path = CELLS) -> list[dict[str, Any]]:
    """The finished cells of a part; a last line that was cut off is left out."""
    path = folder / f"{name}.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(name: str, row: dict[str, Any], folder: Path = CELLS) -> None:
    """Add a finished cell."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
