"""``python -m benchmarks.results``: compute what is missing of a table, write ``docs/results.md``.

    python -m benchmarks.results                 # all tables, resuming; may be killed at any time
    python -m benchmarks.results cnn             # one table
    python -m benchmarks.results --page          # only write the page from the finished cells

Finished cells are ``benchmarks/results/cells/*.json``; delete one to compute it again.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is loaded

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, write the page."""
    import torch
    from benchmarks.results.cell import Cell, run
    from benchmarks.results.page import page
    from benchmarks.results.store import CELLS, read, write
    from benchmarks.results.tables import TABLES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of finished cells")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="test FashionMNIST on the 2,000 images of the package, not on all 10,000",
    )
    options = parser.parse_args(arguments)
    for name in options.tables:
        if name not in TABLES:
            parser.error(f"no table {name!r}: {', '.join(TABLES)}")

    torch.set_num_threads(1)
    full = not options.embedded
    tables = {name: _tested(TABLES[name](), full) for name in TABLES}
    if not options.page:
        wanted: list[Cell] = [c for name in options.tables or TABLES for c in tables[name]]
        missing = [c for c in dict.fromkeys(wanted) if read(c, options.cells) is None]
        sys.stderr.write(f"{len(missing)} of {len(wanted)} cells to compute\n")
        for number, cell in enumerate(missing, 1):
            start = time.perf_counter()
            result = run(cell)
            write(cell, result, options.cells)
            score = result["accuracy"]
            sys.stderr.write(
                f"{number}/{len(missing)} {cell.name}: dense {score['dense']:.4f}, "
                f"pruned {score['pruned']:.4f}, healed {score['healed']:.4f}, "
                f"{time.perf_counter() - start:.0f} s\n"
            )
    finished = {n: [(c, r) for c in t if (r := read(c, options.cells))] for n, t in tables.items()}
    text = page(finished, {name: len(t) for name, t in tables.items()})
    unfinished = options.out.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, options.out)


def _tested(cells: list["Cell"], full: bool) -> list["Cell"]:  # noqa: F821
    """The same cells, tested on the whole test set where there is one that is larger."""
    from secateur.zoo.registry import network

    images = {c.network for c in cells if network(c.network).RECIPE.data == "fashion_mnist"}
    return [replace(c, full=full and c.network in images) for c in cells]


if __name__ == "__main__":
    main()
