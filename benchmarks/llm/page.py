"""The page of the finished cells."""

from statistics import fmean, median, stdev
from typing import Any

from benchmarks.llm.cell import AGAIN, AUTHORS
from benchmarks.llm.store import key

HEAD = """# Pruning a language model after training

Made by `python -m benchmarks.llm` from its finished cells. The model is SmolLM2-135M-Instruct
({parameters}), whose published 4-bit weights are expanded to float32. Calibration: 16 pieces of 512
tokens from random places of the first 80 % of a Wikipedia text. *wiki* is the perplexity
over 8 windows of 512 tokens of the last 20 %, *web* that over 4 windows of another corpus (C4),
which nothing was calibrated on. *choices* is the share of 40 questions made from C4 in which the
right one of four endings of a passage is the likeliest (chance: 25 %; two standard errors are about
15 points, so it tells only the broken from the whole). Seconds are processor time of one core for
all of the pruning, calibration included; memory is what it needed beyond the model itself, empty
where that was measured in another way, which counted weights that were read for the first time. All
layers of all 30 blocks are pruned; embeddings, head and norms stay dense, as in every paper.
Options are the methods' own but for those in brackets; `default` is `sec.sparsify` without a
method (ADMM of ten iterations, amounts by `scope="fisher"`; a pattern leaves nothing to divide, and
there it is three iterations and one pass of tuning of each block).
Calibration with seed 0; where there is a ±, with seeds 0, 1 and 2: mean and standard deviation.
"""


def made(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown of everything that is there."""
    rows = list(cells.values())
    dense = next((c for c in rows if c["method"] == "dense"), None)
    lines = [HEAD.format(parameters="134.5 million parameters, 30 blocks")]
    if dense:
        lines += [
            f"Dense: wiki {dense['wiki']:.2f}, web {dense['web']:.2f}, "
            f"choices {dense['choices']:.1%}.",
            "",
        ]
    targets = sorted({c["target"] for c in rows if "target" in c}, key=lambda t: (":" in t, t))
    for target in targets:
        lines += _table(target, [c for c in rows if c.get("target") == target], dense)
    return "\n".join([*lines, *_authors(cells), *_texts(rows), *_records(dense)])


def _table(target: str, rows: list[dict[str, Any]], dense: dict[str, Any] | None) -> list[str]:
    seeds: dict[str, list[dict[str, Any]]] = {}
    for cell in rows:
        if not cell.get("by"):
            seeds.setdefault(_name(cell), []).append(cell)
    reference = seeds.get("`sparsegpt`")
    lines = [
        f"## {target}",
        "",
        "| method | wiki | web | choices | gap of SparseGPT closed | s | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cells in sorted(seeds.items(), key=lambda item: _mean(item[1], "wiki")):
        closed = ""
        if reference is not None and dense is not None:
            whole = _mean(reference, "wiki") - dense["wiki"]
            closed = f"{(_mean(reference, 'wiki') - _mean(cells, 'wiki')) / whole:.0%}"
        memory = median(c["memory_mb"] for c in cells) if "memory_mb" in cells[0] else ""
        lines.append(
            f"| {name} | {_spread(cells, 'wiki')} | {_spread(cells, 'web')} "
            f"| {_mean(cells, 'choices'):.1%} | {closed} "
            f"| {median(c['seconds'] for c in cells):.0f} | {memory} |"
        )
    return [*lines, ""]


def _mean(cells: list[dict[str, Any]], what: str) -> float:
    return fmean(c[what] for c in cells)


def _spread(cells: list[dict[str, Any]], what: str) -> str:
    """The mean over seeds, with the standard deviation where there are several."""
    mean = f"{_mean(cells, what):.1f}"
    return mean if len(cells) == 1 else f"{mean} ± {stdev(c[what] for c in cells):.1f}"


def _name(cell: dict[str, Any]) -> str:
    said = [
        f"{k}={v!r}" for part in ("options", "arguments") for k, v in cell.get(part, {}).items()
    ]
    return f"`{cell['method']}`" + (f" ({', '.join(said)})" if said else "")


def _authors(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Their code beside ours, and beside itself."""
    rows = []
    for cell in cells.values():
        theirs = {AUTHORS: None, AGAIN: AUTHORS}
        other = cells.get(key(cell | {"by": theirs.get(cell.get("by", ""))}))
        if cell.get("by") not in theirs or other is None:
            continue
        same = "" if cell["agreement"] is None else f"{cell['agreement']:.4%}"
        if cell["by"] == AGAIN:
            ours, whole = cell, other
            ratios = " | "
        else:
            ours, whole = other, cell
            known = "memory_mb" in ours and cell.get("memory_mb")
            memory = f"{ours['memory_mb'] / cell['memory_mb']:.2f}" if known else ""
            ratios = f"{ours['seconds'] / cell['seconds']:.2f} | {memory}"
        who = "theirs, samples reversed" if cell["by"] == AGAIN else "ours"
        rows.append(
            f"| {_name(cell)} | {cell['target']} | {who} | {same} | {whole['wiki']:.3f} "
            f"| {ours['wiki']:.3f} ({ours['wiki'] / whole['wiki'] - 1:+.2%}) | {ratios} |"
        )
    if not rows:
        return []
    return [
        "## The authors' own code",
        "",
        "On the same model and the same tokens: their classes for one layer, called block after",
        "block as their scripts do (`python -m benchmarks.llm --authors`). Time and memory are",
        "those of the other divided by theirs. Rounding flips a few weights in a million in the",
        "first blocks; what that changes in the inputs of the next flips more there. How much that",
        "is shows their own code when it is given the same samples in reverse order. Where every",
        "block is given the dense model's inputs (`propagate='dense'`) nothing adds up.",
        "",
        "| method | target | beside theirs | weights on which the masks agree | wiki, theirs "
        "| wiki, the other | time | memory |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _texts(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for cell in rows:
        for one in cell.get("text", ()):
            if not lines:
                lines = ["## How the texts go on", "", "The likeliest token, thirty times.", ""]
                lines += ["| | *beginning* ... |", "|---|---|"]
            seen = f"*{one['prompt']}* ... {_line(one['dense'])}"
            if f"| dense | {seen} |" not in lines:
                lines.append(f"| dense | {seen} |")
            said = f"*{one['prompt']}* ... {_line(one['pruned'])}"
            lines.append(f"| {_name(cell)}, {cell['target']} | {said} |")
    return [*lines, ""] if lines else []


def _line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _records(dense: dict[str, Any] | None) -> list[str]:
    if dense is None:
        return []
    lines = ["## What was read", "", "| | source | pieces x tokens | SHA-256 of the text |"]
    lines.append("|---|---|---|---|")
    for name, record in dense["records"].items():
        lines.append(
            f"| {name} | {record['source']} | {record['number']} x {record['length']} "
            f"| `{record['sha256'][:16]}` |"
        )
    vocabulary = dense["records"]["wiki"]
    lines += [
        "",
        f"Tokenizer: `{vocabulary['tokenizer']}`, {vocabulary['vocabulary']:,} tokens, SHA-256 "
        f"`{vocabulary['vocabulary_sha256'][:16]}`.",
        "",
    ]
    return lines
