"""``python -m benchmarks.sparse``: train with every method, keep every finished cell, write a page.

python -m benchmarks.sparse                    # all, resuming
python -m benchmarks.sparse --minutes 5        # as many cells as fit
python -m benchmarks.sparse --only rigl --redo
python -m benchmarks.sparse --page             # the page alone, from what is finished
"""

import argparse
import json
import time

from benchmarks.sparse import after
from benchmarks.sparse.cell import dense_seconds, run
from benchmarks.sparse.design import DENSE, HAN, KINDS, wanted
from benchmarks.sparse.page import PAGE, page
from benchmarks.sparse.store import CELLS, load

import secateur as sec
from secateur.methods import registry


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--only", action="append", metavar="METHOD")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    done, start = load(), time.monotonic()
    for cell in [] if options.page else wanted():
        if (options.only and cell.method not in options.only) or (
            options.kind and cell.kind != options.kind
        ):
            continue
        if cell.key in done and not options.redo:
            continue
        if time.monotonic() - start > 60 * options.minutes:
            break
        try:
            figures = after.run(cell) if cell.kind == "after" else run(cell)
        except sec.SecateurError as error:
            print(f"{cell.key}: {error}", flush=True)
            continue
        if cell.kind in ("weights", "channels") and cell.method != DENSE:
            figures["dense_seconds"] = dense_seconds(cell.network)
        stage = "" if cell.method in (DENSE, HAN) else registry.entry(cell.method).stage
        row = {
            "key": cell.key, "kind": cell.kind, "network": cell.network, "method": cell.method,
            "control": cell.control, "setting": cell.setting, "seed": cell.seed, "stage": stage,
            "data": cell.data, **figures,
        }  # fmt: skip
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
