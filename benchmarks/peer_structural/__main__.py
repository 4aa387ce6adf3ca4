"""``python -m benchmarks.peer_structural``: measure what is missing, write ``docs/benchmarks.md``.

python -m benchmarks.peer_structural                    # everything, resuming
python -m benchmarks.peer_structural times accuracy     # some parts
python -m benchmarks.peer_structural coverage --set operators --only mlp
python -m benchmarks.peer_structural --page             # only write the page
"""

import argparse
import os
from pathlib import Path

from benchmarks.needed import need

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is loaded

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
PARTS = ("times", "memory", "accuracy", "coverage")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, write the page."""
    need("bench", "psutil", "torch_pruning", "torchvision", "timm", "transformers")
    need("zoo", "torch_geometric", "ultralytics")
    from benchmarks.peer_structural import accuracy, coverage, times
    from benchmarks.peer_structural.page import page
    from benchmarks.peer_structural.store import CELLS, append, load

    from benchmarks import llm_memory

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_structural",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--set", action="append", choices=list(coverage.SETS), help="of the coverage"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="of the coverage")
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of finished cells")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--page", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: {', '.join(PARTS)}")

    for part in () if options.page else options.parts or PARTS:
        if part == "times":
            times.main(options.cells)
        elif part == "memory" and not load("memory", options.cells):
            append("memory", llm_memory.child(), options.cells)
        elif part == "accuracy":
            accuracy.main(options.cells)
        elif part == "coverage":
            coverage.run(options.cells / "coverage.jsonl", options.set, options.only)
    memory = load("memory", options.cells)
    text = page(
        load("times", options.cells),
        memory[-1] if memory else None,
        coverage.load(options.cells / "coverage.jsonl"),
        load("accuracy", options.cells),
    )
    unfinished = options.out.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, options.out)


if __name__ == "__main__":
    main()
