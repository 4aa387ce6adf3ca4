"""``python -m benchmarks.tickets``: run the cells that are missing, and write the page.

    python -m benchmarks.tickets                    # all, resuming
    python -m benchmarks.tickets --only search --minutes 5
    python -m benchmarks.tickets --page             # only write docs/tickets.md

Masks of finished searches are kept in out/tickets; what they measured is in cells.jsonl.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from benchmarks.tickets.experiments import cells
from benchmarks.tickets.page import page

HERE = Path(__file__).parent
CELLS = HERE / "cells.jsonl"
PAGE = HERE.parents[1] / "docs" / "tickets.md"
FOLDER = Path("out") / "tickets"


def load() -> dict[str, dict]:
    """The finished cells by name; the newest of each counts."""
    if not CELLS.exists():
        return {}
    rows = [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()]
    return {row["cell"]: row for row in rows}


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tickets", description=__doc__)
    parser.add_argument("--only", action="append", metavar="START", help="of a cell's name")
    parser.add_argument("--minutes", type=float, help="begin no cell after so long")
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--page", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, done = time.monotonic(), load()
    for name, cell in cells().items():
        if options.page or (name in done and not options.redo):
            continue
        if options.only and not any(name.startswith(start) for start in options.only):
            continue
        if options.minutes and time.monotonic() - began > 60 * options.minutes:
            break
        start = time.process_time()
        row = {"cell": name, **cell(FOLDER), "seconds": round(time.process_time() - start, 1)}
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
