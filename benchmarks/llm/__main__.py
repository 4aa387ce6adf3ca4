"""``python -m benchmarks.llm``: prune a language model by every method, keep every finished cell.

    python -m benchmarks.llm                          # what is missing, the most important first
    python -m benchmarks.llm --only wanda --redo
    WANDA=/path/to/wanda SPARSEGPT=/path/to/sparsegpt python -m benchmarks.llm --authors
    python -m benchmarks.llm --page                   # only write docs/llm.md

A cell takes two to six minutes on one core. Without ``--authors`` nothing but packages is needed.
"""

import argparse
import json
from typing import Any

from benchmarks.cells import in_own_process
from benchmarks.llm import authors, page
from benchmarks.llm.cell import AGAIN, AUTHORS, DENSE
from benchmarks.llm.store import PAGE, append, key, load
from benchmarks.needed import need

LEADING = ("default", "sparsegpt", "wanda", "magnitude", "admm", "sparseswaps", "alps")
OTHERS = ("ria", "dsnot", "sparsellm", "woodfisher")
TARGETS = ("50%", "2:4", "60%", "70%", "4:8")
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "default", "target": "50%", "arguments": {"scope": "uniform"}},
    {"method": "sparsegpt", "target": "50%", "arguments": {"scope": "fisher"}},
    {
        "method": "sparsegpt",
        "target": "50%",
        "arguments": {"scope": ["fisher", {"spread": 1}]},
    },
    {"method": "wanda", "target": "50%", "arguments": {"scope": "owl"}},
    {"method": "wanda", "target": "50%", "arguments": {"scope": "alpha-pruning"}},
    {"method": "magnitude", "target": "50%", "arguments": {"scope": "global"}},
    {"method": "sparsegpt", "target": "50%", "arguments": {"propagate": "both"}},
    {"method": "default", "target": "2:4", "arguments": {"propagate": "both"}},
    {"method": "default", "target": "2:4", "arguments": {"true_sequential": True}},
    {"method": "wanda", "target": "50%", "arguments": {"propagate": "dense"}},
    {"method": "sparsegpt", "target": "50%", "arguments": {"propagate": "dense"}},
)


def _cell(method: str, target: str, **more: Any) -> dict[str, Any]:
    sample = {"sample": True} if target == "50%" and method in LEADING[:2] else {}
    return {"method": method, "target": target, **sample, **more}


CELLS: tuple[dict[str, Any], ...] = (
    {"method": DENSE},
    *(_cell(method, target) for target in TARGETS[:3] for method in LEADING),
    *VARIANTS,
    *(_cell(method, target) for target in TARGETS[3:] for method in LEADING),
    *(_cell(method, target) for target in TARGETS for method in OTHERS),
    *(
        {"method": method, "target": target, "seed": seed}
        for seed in (1, 2)
        for target in TARGETS[:2]
        for method in LEADING
        if method != "magnitude"  # reads nothing
    ),
)
AT_DENSE = {"propagate": "dense"}
THEIRS: tuple[dict[str, Any], ...] = (
    {"method": "wanda", "target": "50%", "by": AUTHORS},
    {"method": "wanda", "target": "50%", "by": AGAIN},
    {"method": "wanda", "target": "50%", "by": AUTHORS, "arguments": AT_DENSE},
    {"method": "sparsegpt", "target": "50%", "by": AUTHORS},
    {"method": "sparsegpt", "target": "50%", "by": AGAIN},
    {"method": "sparsegpt", "target": "50%", "by": AUTHORS, "arguments": AT_DENSE},
    {"method": "sparsegpt", "target": "2:4", "by": AUTHORS},
    {"method": "sparsegpt", "target": "2:4", "by": AGAIN},
)


def main() -> None:
    """Run what is missing, write the page."""
    need("hf", "transformers", "accelerate", "gguf")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm", description=__doc__)
    parser.add_argument("--only", action="append", metavar="METHOD")
    parser.add_argument("--target", action="append", metavar="TARGET")
    parser.add_argument("--authors", action="store_true", help="their code, from WANDA, SPARSEGPT")
    parser.add_argument("--cells", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    done, ran = load(), 0
    for wanted in () if options.page else (*CELLS, *(THEIRS if options.authors else ())):
        if (
            (options.only and wanted["method"] not in options.only)
            or (options.target and wanted.get("target") not in options.target)
            or (key(wanted) in done and not options.redo)
            or (options.cells is not None and ran >= options.cells)
        ):
            continue
        if wanted.get("by") and not authors.available(wanted["method"]):
            print(f"{wanted['method']}: set {authors.FOLDERS[wanted['method']]} to their folder")
            continue
        cell = in_own_process("benchmarks.llm.cell", wanted)
        append(cell)
        ran += 1
        print(json.dumps({k: v for k, v in cell.items() if k not in ("records", "text")}))
    PAGE.write_text(page.made(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
