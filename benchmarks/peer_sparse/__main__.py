"""``python -m benchmarks.peer_sparse``: measure what is missing, write docs/overhead.md.

python -m benchmarks.peer_sparse            # resumes; one cell takes seconds
python -m benchmarks.peer_sparse --redo
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from benchmarks.peer_sparse import cells
from benchmarks.peer_sparse.page import page
from benchmarks.peer_sparse.tools import TOOLS

HERE = Path(__file__).parent
CELLS = HERE / "cells.json"
PAGE = HERE.parents[1] / "docs" / "overhead.md"
ROUNDS = {"lenet300": 150, cells.WIDE: 60, "resnet8": 15}


def times(name: str) -> list[dict[str, Any]]:
    """The rows of one network, with the cause where a tool does not run on it."""
    rows = cells.summary(cells.step_times(name, ROUNDS[name]))
    failed = [t for t in TOOLS if t not in {r["tool"] for r in rows}]
    return [*rows, *({"tool": t, "cause": cells.cause(t, name)} for t in failed)]


def main() -> None:
    """Measure cell by cell; what is finished is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_sparse", description=__doc__)
    parser.add_argument("--redo", action="store_true", help="measure again")
    parser.add_argument("--only", default="", metavar="START", help="cells that begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if CELLS.exists():
        found = json.loads(CELLS.read_text(encoding="utf-8"))
    wanted = {
        **{f"times {n}": lambda n=n: times(n) for n in ROUNDS},
        **{f"growth {t}": lambda t=t: cells.growth(t, "lenet300") for t in TOOLS},
        **{f"states {t}": lambda t=t: cells.states(t) for t in TOOLS},
        "goldens": cells.goldens,
    }
    for name, measured in wanted.items():
        if name.startswith(options.only) and (options.redo or name not in found):
            found[name] = measured()
            CELLS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, flush=True)
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
