"""``python -m benchmarks.structured``: prune a language model in width and depth.

    python -m benchmarks.structured             # cells that are missing, then docs/structured.md
    python -m benchmarks.structured --cells 1   # at most one more
    python -m benchmarks.structured --clock     # only time prompts and tokens
    python -m benchmarks.structured --experts   # only train a mixture of experts and prune it
    python -m benchmarks.structured --gates     # only measure the run-time gates
    python -m benchmarks.structured --vision    # only prune a vision transformer while it trains
    python -m benchmarks.structured --page      # only write the page

A cell takes two to ten minutes on one core; finished ones are kept in cells.jsonl.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.cells import in_own_process
from benchmarks.needed import need
from benchmarks.structured import experts
from benchmarks.structured.cell import HEALED, TOKENS
from benchmarks.structured.clock import CASES
from benchmarks.structured.clock import TOKENS as PROMPT
from benchmarks.structured.clock import measured as timed_models
from benchmarks.structured.gates import measured, timed
from benchmarks.structured.vision import AFTER, CUT, STEPS
from benchmarks.structured.vision import measured as trained

CELLS = Path(__file__).parent / "cells.jsonl"
GATES = Path(__file__).parent / "gates.json"
CLOCK = Path(__file__).parent / "clock.json"
VISION = Path(__file__).parent / "vision.json"
EXPERTS = Path(__file__).parent / "experts.json"
PAGE = Path(__file__).parents[2] / "docs" / "structured.md"
FEWER = [2, 256]  # where every block is tried in every step
LEFT = {0.1: 0.92, 0.2: 0.84, 0.3: 0.76}  # parameters that stay if so many of the blocks' go
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "width"},
    {"method": "depth"},
    {"method": "shortgpt"},
    {"method": "flap"},
    {"method": "flap", "arguments": {"recovery": "fold"}},
    {"method": "mask_tuning"},
    {"method": "minitron"},
    {"method": "wanda_sp"},
    {"method": "slicegpt"},
    {"method": "llm_pruner"},
    {"method": "shortened_llama", "options": {"by": "taylor", "first": 4, "last": 2}},
    {"method": "shortened_llama", "tokens": FEWER},
    {"method": "sleb", "tokens": FEWER},
)
MORE_TOKENS = [64, 256]  # to train on for an epoch
MORE: tuple[dict[str, Any], ...] = (
    {"method": "flap", "options": {"compensate": False}},
    {"method": "blockpruner", "tokens": FEWER},
    {"method": "evopress", "tokens": FEWER},
    {"method": "sleb", "tokens": FEWER, "arguments": {"recovery": "bridge"}},
)
BLOCKS = (
    "depth",
    "shortgpt",
    "shortened_llama",
    "sleb",
    "evopress",
)  # whole ones go, so their number is the goal


def _at(cell: dict[str, Any], amount: float) -> dict[str, Any]:
    whole = cell["method"] in BLOCKS
    return {**cell, "goal": {"amount": amount} if whole else {"keep": {"params": LEFT[amount]}}}


WANTED: tuple[dict[str, Any], ...] = (
    {"method": "dense"},
    *(_at(cell, 0.2) for cell in METHODS),
    *(_at(cell, amount) for amount in (0.1, 0.3) for cell in METHODS),
    {"method": "slicegpt", "goal": {"amount": 0.2}},
    {"method": "slicegpt", "goal": {"amount": 0.3}},
    *(_at(cell, 0.2) for cell in MORE),
    *(_at({"method": "width", "tokens": MORE_TOKENS, "healed": healed}, 0.2) for healed in HEALED),
)
_KEY = ("method", "goal", "options", "arguments", "tokens", "seed", "healed")


def key(cell: dict[str, Any]) -> str:
    """What tells cells apart."""
    return json.dumps({name: cell[name] for name in _KEY if cell.get(name)}, sort_keys=True)


def load() -> dict[str, dict[str, Any]]:
    """All finished cells by their key; the newest of each counts."""
    lines = CELLS.read_text(encoding="utf-8").splitlines() if CELLS.exists() else []
    cells = [json.loads(line) for line in lines]
    return {key(cell): cell for cell in cells}


def page(done: dict[str, dict[str, Any]]) -> str:
    """The cells as a page."""
    dense = next((c for c in done.values() if c["method"] == "dense"), None)
    lines = [
        "# Structured pruning of a language model",
        "",
        "Written by `python -m benchmarks.structured`, which keeps finished cells in "
        "`benchmarks/structured/cells.jsonl`.",
        "",
        "SmolLM2-135M-Instruct (its 4-bit weights expanded to float32), 30 blocks, 9 query and 3 "
        f"key-value heads, tied embeddings. Calibration: {TOKENS[0]} pieces of {TOKENS[1]} tokens "
        "of Wikipedia text unless a row says less. Perplexity: 8 windows of 512 tokens of the "
        "other part of that text, 4 windows of web text that no method saw. Choices: 40 questions "
        "made from the web text, chance 25 %. One seed, nothing is trained afterwards. Memory is "
        "what it needed beyond the model, the dense copy that it keeps included. Seconds are CPU "
        "time of one thread for planning, removal, proof and "
        "mending. Proven means that the smaller model equals the dense one with the same units "
        "masked, or the same blocks skipped, before it was mended. SliceGPT has to untie the "
        "embeddings (28.3 million parameters more) and adds a matrix a block, so its parameters "
        "left count both.",
        "",
    ]
    if dense is not None:
        lines.append(
            f"Dense: Wikipedia {dense['wiki']:.2f}, web {dense['web']:.2f}, "
            f"choices {dense['choices']:.1%}."
        )
        for amount in sorted(LEFT):
            lines += _table(amount, done, dense)
    gone = {
        c["method"]: c["dropped"]
        for c in done.values()
        if c.get("dropped") and c["method"] != "slicegpt" and c["goal"] != {"amount": 0.1}
    }  # of SliceGPT all blocks stay
    lines += [] if not gone else ["", "Blocks that went: " + "; ".join(
        f"`{name}` {', '.join(b.removeprefix('model.layers.') for b in blocks)}"
        for name, blocks in gone.items()
    ) + "."]  # fmt: skip
    return (
        "\n".join([*lines, *_healing(done), *_clock(), *_experts(), *_gates(), *_vision()]) + "\n"
    )


def _table(amount: float, done: dict[str, dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """All methods at one amount, the best first."""
    goals = ({"amount": amount}, {"keep": {"params": LEFT[amount]}})
    cells = [
        done[key(w)]
        for w in WANTED
        if w.get("goal") in goals and key(w) in done and "healed" not in w
    ]
    if not cells:
        return []
    wiki, web = (_name(min(cells, key=lambda cell: cell[text])) for text in ("wiki", "web"))
    lines = [
        "",
        f"## {amount:.0%} of what the blocks hold",
        "",
        f"Lowest perplexity on Wikipedia: {wiki}; on web text, of which nothing is known: {web}.",
        "",
        "| method | goal | parameters left | Wikipedia | web | choices | proven | seconds "
        "| memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda cell: cell["wiki"]):
        proof = cell["proof"]
        proven = f"to {proof['error']:.0e}" if proof["ok"] else "NO"
        lines.append(
            f"| {_name(cell)} | {_goal(cell)} | {cell['parameters'] / dense['parameters']:.1%} "
            f"| {cell['wiki']} | {cell['web']} | {cell['choices']:.1%} "
            f"| {proven} | {cell['seconds']} "
            f"| {cell['memory_mb']} |"
        )
    return lines


def _healing(done: dict[str, dict[str, Any]]) -> list[str]:
    """What an epoch of training gives back."""
    cells = [done[key(w)] for w in WANTED if "healed" in w and key(w) in done]
    if not cells:
        return []
    lines = [
        "",
        "## Healing",
        "",
        f"`width` at {LEFT[0.2]:.0%} of the parameters, folded, then one epoch on the same "
        f"{MORE_TOKENS[0]} pieces of {MORE_TOKENS[1]} tokens (the part of the Wikipedia text that "
        "everything here is calibrated on): all weights or LoRA of rank 8, towards the next token, "
        "or mostly towards what the dense model says (distilling). Web text shows what the "
        "training forgets. One seed.",
        "",
        "| trained | Wikipedia | web | choices | seconds in all |",
        "|---|---|---|---|---|",
    ]
    for cell in cells:
        lines.append(
            f"| {cell['healed']} | {cell['wiki']} | {cell['web']} | {cell['choices']:.1%} "
            f"| {cell['seconds']} |"
        )
    return lines


def _clock() -> list[str]:
    """How long the prompt and the next token take, dense beside pruned."""
    if not CLOCK.exists():
        return []
    rows = json.loads(CLOCK.read_text(encoding="utf-8"))
    phases = list(rows[0]["clock"])
    columns = [f"{phase.split()[0]}, batch {phase.split()[1]}" for phase in phases]
    lines = [
        "",
        "## Wall clock",
        "",
        "`python -m benchmarks.structured --clock`: a prompt of "
        f"{PROMPT} tokens (prefill), and one token more for each sequence with the prompt in the "
        "cache (decode): milliseconds dense → pruned, and how many times faster. float32 on one "
        "thread of a CPU that other jobs shared, so the ratios say more than the milliseconds; "
        "calls of both models are taken in turn, medians.",
        "",
        f"| method | goal | parameters left | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for row in rows:
        cells = [
            f"{1e3 * t['dense']:.0f} → {1e3 * t['pruned']:.0f} ({t['dense'] / t['pruned']:.2f})"
            for t in (row["clock"][phase] for phase in phases)
        ]
        lines.append(f"| {_name(row)} | {_goal(row)} | {row['left']:.1%} | {' | '.join(cells)} |")
    return lines


def _experts() -> list[str]:
    """What removing experts does to a mixture that the benchmark trains itself."""
    if not EXPERTS.exists():
        return []
    found = json.loads(EXPERTS.read_text(encoding="utf-8"))
    names = [name for name in found["rows"][0] if name not in ("amount", "proof")]
    lines = [
        "",
        "## Experts",
        "",
        "`python -m benchmarks.structured --experts`: a Mixtral of 3 blocks, width 64, 8 experts, "
        f"2 of them for each token, trained for {found['steps']} steps on bytes of the Wikipedia "
        f"text. Bits per byte of 32 x 256 bytes of its other part; dense {found['dense']}. Upside "
        "down: the experts that REAP likes best go. The least used expert saw "
        f"{found['fewest tokens of an expert']} tokens of the calibration. "
        "Nothing is trained afterwards; one seed.",
        "",
        f"| experts removed | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row in found["rows"]:
        lines.append(f"| {row['amount']:.0%} | {' | '.join(str(row[name]) for name in names)} |")
    return lines


def _gates() -> list[str]:
    """What run-time gates do to the zoo's vision transformer."""
    if not GATES.exists():
        return []
    lines = [
        "",
        "## At run time",
        "",
        "`sec.gate` on the zoo's vision transformer (4 blocks, 49 patches and a class token, "
        "width 64; FashionMNIST, 2,000 test images). Times faster: the ratio of medians of "
        "interleaved forwards of 64 images on one thread.",
        "",
        "| method | accuracy | times faster | tokens after each block, or zeros |",
        "|---|---|---|---|",
    ]
    both = json.loads(GATES.read_text(encoding="utf-8"))
    for row in both["zoo"]:
        counted = row.get("counted", {})
        left = ", ".join(map(str, counted.get("tokens", ())))
        left = left or (f"{counted['zeros']:.1%}" if counted else "")
        lines.append(
            f"| {_name(row)} | {row['accuracy']:.2%} | {row.get('speedup', '')} | {left} |"
        )
    lines += [
        "",
        "Four narrow blocks leave little to save; what matching and gathering cost does not shrink "
        "with the width. timm's `vit_small_patch16_224` (12 blocks, 197 tokens, width 384; random "
        "weights, so times only), 2 images:",
        "",
        "| method | times faster | tokens after the last block |",
        "|---|---|---|",
        *(f"| {_name(r)} | {r['speedup']} | {r['counted']['tokens'][-1]} |" for r in both["timm"]),
    ]
    return lines


def _vision() -> list[str]:
    """What methods during training make of the zoo's vision transformer."""
    if not VISION.exists():
        return []
    lines = [
        "",
        "## A vision transformer, pruned while it trains",
        "",
        "`python -m benchmarks.structured --vision`: heads, dimensions of heads and neurons of the "
        f"zoo's vision transformer at about half of its MACs. The trained network goes on for "
        f"{STEPS} steps with a method attached (AdamW, batches of 64 FashionMNIST images), what "
        f"is zero is removed, proven, and trained for {AFTER} more; the rate falls linearly from "
        f"5e-4. 2,000 test images; one seed, so differences below {CUT} points mean little.",
        "",
        "| method | MACs left | accuracy | proven | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in json.loads(VISION.read_text(encoding="utf-8")):
        proven = f"to {row['error']:.0e}" if "error" in row else ""
        lines.append(
            f"| {_name(row)} | {row['macs']:.1%} | {row['accuracy']:.2%} | {proven} "
            f"| {row['seconds']} |"
        )
    return lines


def _name(cell: dict[str, Any]) -> str:
    options = {**cell.get("options", {}), **cell.get("arguments", {})}
    said = ", ".join(f"{name}={value}" for name, value in options.items())
    tokens = f" ({cell['tokens'][0]} x {cell['tokens'][1]} tokens)" if "tokens" in cell else ""
    return f"`{cell['method']}`{' ' + said if said else ''}{tokens}"


def _goal(cell: dict[str, Any]) -> str:
    goal = cell.get("goal", {})
    if "keep" in goal:
        return f"{goal['keep']['params']:.0%} of the parameters"
    what = "width" if cell["method"] == "slicegpt" else "blocks"
    return (
        f"{goal['amount']:.0%} of the {what} {'goes' if what == 'width' else 'go'}" if goal else ""
    )


def main() -> None:
    """Run what is missing, write the page."""
    need("hf", "transformers", "accelerate", "gguf")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured", description=__doc__)
    parser.add_argument("--cells", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no cell after so long")
    parser.add_argument("--only", action="append", metavar="METHOD")
    parser.add_argument("--clock", action="store_true", help="only time prompts and tokens")
    parser.add_argument("--experts", action="store_true", help="only remove experts")
    parser.add_argument("--gates", action="store_true", help="only measure the run-time gates")
    parser.add_argument("--vision", action="store_true", help="only the vision transformer")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    done, ran, began = load(), 0, time.monotonic()
    if options.gates:
        GATES.write_text(
            json.dumps({"zoo": measured(), "timm": timed()}, indent=1) + "\n", encoding="utf-8"
        )
    if options.clock:
        rows = [timed_models(method, goal) for method, goal in CASES]
        CLOCK.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.experts:
        EXPERTS.write_text(json.dumps(experts.measured(), indent=1) + "\n", encoding="utf-8")
    if options.vision:
        rows = json.loads(VISION.read_text(encoding="utf-8")) if VISION.exists() else []
        for grown in trained(rows):
            VISION.write_text(json.dumps(grown, indent=1) + "\n", encoding="utf-8")
    alone = any((options.page, options.gates, options.clock, options.experts, options.vision))
    for wanted in () if alone else WANTED:
        if key(wanted) in done or (options.only and wanted["method"] not in options.only):
            continue
        late = options.minutes is not None and time.monotonic() - began > 60 * options.minutes
        if late or (options.cells is not None and ran >= options.cells):
            break
        cell = in_own_process("benchmarks.structured.cell", wanted)
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        done[key(cell)] = cell
        ran += 1
        print(json.dumps(cell))
    PAGE.write_text(page(done), encoding="utf-8")


if __name__ == "__main__":
    main()
