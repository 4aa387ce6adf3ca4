"""``python -m benchmarks.encoder``: prune a sentence encoder, keep every finished cell.

    python -m benchmarks.encoder                # what is missing, then docs/encoder.md
    python -m benchmarks.encoder --only wanda
    python -m benchmarks.encoder --page         # only write the page

Most cells take less than a minute on one core, ``woodfisher`` and ``exact_obs`` some minutes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.needed import need

CELLS = Path(__file__).parent / "cells.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "encoder.md"
LEVELS: dict[str, dict[str, Any]] = {
    "50%": {"amount": 0.5},
    "2:4": {"pattern": "2:4"},
    "60%": {"amount": 0.6},
    "70%": {"amount": 0.7},
    "4:8": {"pattern": "4:8"},
}
WEIGHTS = (
    "default", "sparsegpt", "wanda", "magnitude", "admm", "alps", "sparseswaps", "sparsellm", "ria",
    "dsnot", "woodfisher", "obs",
)  # fmt: skip
SLOW = tuple({"method": "exact_obs", "goal": LEVELS[n]} for n in ("50%", "2:4"))
WIDTH = (
    "width", "mask_tuning", "wanda_sp", "flap", "llm_pruner", "minitron",
)  # fmt: skip
DEPTH = ("depth", "shortgpt", "shortened_llama", "sleb", "evopress")
UNITS, BLOCKS = 0.2, 1 / 6  # a fifth of the heads and neurons; one block of the six
WANTED: tuple[dict[str, Any], ...] = (
    {"method": "dense"},
    *({"method": m, "goal": goal} for goal in LEVELS.values() for m in WEIGHTS),
    *({"method": method, "units": UNITS} for method in WIDTH),
    *({"method": method, "blocks": BLOCKS} for method in DEPTH),
    *SLOW,
)
HEAD = """# Pruning a sentence encoder after training

Made by `python -m benchmarks.encoder` from its finished cells, which are in
`benchmarks/encoder/cells.jsonl`. The model is all-MiniLM-L6-v2 (BERT, 6 blocks of width 384, 12
heads, {parameters:.1f} million parameters). A passage is two halves of 30 tokens, each a text of
its own. Calibration: 128 passages from random places of the first 80 % of a Wikipedia text, seed 0.
*wiki* are 256 passages of its last 20 %, *web* 256 of another corpus (C4) that nothing was
calibrated on. *Cosine* is the mean similarity of an embedding to that of the dense model,
*retrieval* how often a first half is nearest to its own second half among all 256 (two standard
errors are about 6 points). All linear layers of the six blocks are pruned, embeddings and norms
are not; where a row says units, heads and neurons are removed for real, and where it says a block,
that. Two methods do not apply to this model and say so: `slicegpt`, since every block normalises
the sum (the residual stream has no basis that could be turned), and `blockpruner`, since attention
is no module that only adds. Options are the methods' own; `default` is `sec.sparsify` without a
method. Nothing is trained afterwards; one seed. Seconds are processor time of one core for all of
the pruning.
"""


def key(cell: dict[str, Any]) -> str:
    """What tells cells apart."""
    return json.dumps({k: cell[k] for k in ("method", "goal", "units", "blocks") if k in cell})


def load() -> dict[str, dict[str, Any]]:
    """All finished cells by their key."""
    lines = CELLS.read_text(encoding="utf-8").splitlines() if CELLS.exists() else []
    return {key(cell): cell for cell in map(json.loads, lines)}


def page(done: dict[str, dict[str, Any]]) -> str:
    """The cells as a page."""
    dense = done[key({"method": "dense"})]
    lines = [
        HEAD.format(parameters=dense["parameters"] / 1e6),
        "| method | target | wiki: cosine | retrieval | web: cosine | retrieval | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for wanted in WANTED:
        if key(wanted) not in done:
            continue
        cell = done[key(wanted)]
        figures = " | ".join(
            f"{cell[text]['cosine']:.3f} | {cell[text]['retrieval']:.1%}"
            for text in ("wiki", "web")
        )
        lines.append(
            f"| `{cell['method']}` | {_target(cell, dense)} | {figures} "
            f"| {cell.get('seconds', '')} |"
        )
    lines += ["", "| | source | pieces x tokens | SHA-256 of the text |", "|---|---|---|---|"]
    for name, record in dense["records"].items():
        lines.append(
            f"| {name} | {record['source']} | {record['number']} x {record['length']} "
            f"| `{record['sha256'][:16]}` |"
        )
    return "\n".join(lines) + "\n"


def _target(cell: dict[str, Any], dense: dict[str, Any]) -> str:
    if "goal" in cell:
        return next(name for name, goal in LEVELS.items() if goal == cell["goal"])
    if "proof" not in cell:
        return ""
    proven = f"proven to {cell['proof']['error']:.0e}" if cell["proof"]["ok"] else "NOT proven"
    left = cell["parameters"] / dense["parameters"]
    what = "one block of the six" if "blocks" in cell else f"{cell['units']:.0%} of the units"
    return f"{what}, {left:.1%} of all parameters left, {proven}"


def main() -> None:
    """Run what is missing, write the page."""
    need("hf", "transformers")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--only", action="append", metavar="METHOD")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    done = load()
    missing = [w for w in WANTED if key(w) not in done and not options.page]
    missing = [w for w in missing if not options.only or w["method"] in options.only]
    if missing:
        import torch
        from benchmarks.encoder.cell import encoder, given, measure

        torch.set_num_threads(1)
        dense, texts = encoder(), given()
        for wanted in missing:
            cell = measure(wanted, texts, dense)
            if wanted["method"] == "dense":
                cell["records"] = texts["records"]
            with CELLS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")
            done[key(cell)] = cell
            print(json.dumps({k: v for k, v in cell.items() if k != "records"}), flush=True)
    PAGE.write_text(page(done), encoding="utf-8")


if __name__ == "__main__":
    main()
