"""The page of the comparison: every number comes from a finished cell."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from benchmarks.peer_structural.accuracy import EPOCHS, KEEP, NETWORKS, PEAK
from benchmarks.peer_structural.coverage import SECONDS as COVERAGE_SECONDS
from benchmarks.peer_structural.times import MODELS, REPEATS, RUNS, SECONDS

Rows = Sequence[dict[str, Any]]
INTRODUCTION = """# Benchmarks: side by side with Torch-Pruning

Made by `make bench` (`python -m benchmarks.peer_structural`), which resumes from the finished cells
in `benchmarks/peer_structural/cells/`; delete a line there to measure it again. The peer is
`torch-pruning` 1.6.1 of PyPI. Each library runs in a process of its own, on one thread.
"""


def page(times: Rows, memory: dict[str, Any] | None, coverage: Rows, accuracy: Rows) -> str:
    """The whole page; what has not been run is said to be missing."""
    parts = [INTRODUCTION, _times(times), _memory(memory), _coverage(coverage), _accuracy(accuracy)]
    return "\n".join(parts)


def total(row: dict[str, Any]) -> float:
    """Seconds of CPU time for graph, plan and apply."""
    return sum(row["cpu"].values())


def _times(rows: Rows) -> str:
    lines = [
        "## Time and memory\n",
        f"Half of every class by `l2`, random weights: medians of {REPEATS} runs "
        "in turns between the libraries. A process that has used "
        f"{SECONDS} s of CPU time (model included) is ended. *graph*, *plan* and *apply* are CPU "
        "seconds; the peer's *plan* is its enumeration of groups and *apply* its step. *factor* is "
        "the peer's total over ours: below 1 we are slower. *peak* is the memory of the whole "
        "process, *model* what it was before graph, plan and apply. No hint is given but "
        "the output layers to the peer; *head counts given* adds the numbers of heads. *runs* says "
        "only that the pruned model's forward does, not that it is right.\n",
        "| model | library | runs measured | graph | plan | apply | total | wall | factor "
        "| model, MB | peak, MB | forward |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for model, (title, _) in MODELS.items():
        ours = [total(r) for r in rows if (r["model"], r["run"]) == (model, RUNS[0]) and "cpu" in r]
        for run in RUNS:
            these = [r for r in rows if (r["model"], r["run"]) == (model, run)]
            good = [r for r in these if "cpu" in r]
            if not these:
                continue
            if not good:
                lines.append(f"| {title} | {run} | 0 | | | | | | | | | {these[0]['cause']} |")
                continue
            seconds = median(map(total, good))
            steps = [median(r["cpu"].get(k, 0) for r in good) for k in ("graph", "plan", "apply")]
            factor = f"{seconds / median(ours):.1f}" if ours and run != RUNS[0] else ""
            forward = "runs" if good[0]["runs"] else f"fails: {good[0]['cause'][:70]}"
            lines.append(
                f"| {title} | {run} | {len(good)} | "
                + " | ".join(f"{s:.2f}" for s in (*steps, seconds))
                + f" | {median(r['wall'] for r in good):.2f} | {factor} "
                + f"| {median(r['built_mb'] for r in good):.0f} "
                + f"| {median(r['peak_mb'] for r in good):.0f} | {_cell(forward)} |"
            )
    return "\n".join(lines) + "\n"


def _memory(facts: dict[str, Any] | None) -> str:
    title = "## A Llama of 7 billion parameters on meta tensors\n\n"
    if facts is None:
        return title + "Not measured yet: `python -m benchmarks.llm_memory`.\n"
    return (
        f"{title}{facts['parameters'] / 1e9:.2f} G parameters without weights, in a child process "
        f"(`python -m benchmarks.llm_memory`): traced in {facts['trace_seconds']} s and planned in "
        f"{facts['plan_seconds']} s of CPU time; peak memory {facts['peak_mb']} MB, of which "
        f"{facts['before_mb']} MB are torch, transformers and the empty model.\n"
    )


def _coverage(rows: Rows) -> str:
    lines = [
        "## Coverage without hints\n",
        "A random half of every class; the peer is told the output layers. One naive check for "
        "both (`benchmarks/peer_structural/judge.py`): *right* means that the pruned model gives "
        "what the dense one gives with the same positions zeroed; *announced*, that it does not "
        "but the library said so; *wrong*, a silent difference; *idle*, that at least 98 % of the "
        "parameters are left or the output does not change; *timeout*, that graph, plan and apply "
        f"took more than {COVERAGE_SECONDS} s of CPU time. Models not run are not in the table.\n",
        "| set | library | models | right | announced | wrong | idle | crash | timeout |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = ("right", "announced", "wrong", "idle", "crash", "timeout")
    for key in dict.fromkeys((r["set"], r["library"]) for r in rows):
        these = [r for r in rows if (r["set"], r["library"]) == key and r["verdict"] != "invalid"]
        found = Counter(r["verdict"] for r in these)
        counts = " | ".join(str(found[k]) for k in kinds)
        lines.append(f"| {key[0]} | {key[1]} | {len(these)} | {counts} |")
    if not rows:
        lines.append("\nNot run yet.")
    return "\n".join(lines) + "\n"


def _accuracy(rows: Rows) -> str:
    lines = [
        "## Accuracy at equal MACs and equal fine-tuning\n",
        f"Trained networks of the zoo, {KEEP:g} of the MACs kept, criterion L2 over the group, "
        "uniform ratio (the peer's is found by bisection), then the same loop: "
        f"{EPOCHS} epochs, {PEAK:g} of the network's own learning rate, the same data and seed. "
        "FashionMNIST, all 10,000 test images. In %, mean ± standard deviation over seeds.\n",
        "| network | library | seeds | dense | pruned | healed | MACs kept |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in NETWORKS:
        for library in dict.fromkeys(r["library"] for r in rows if r["network"] == name):
            these = [r for r in rows if (r["network"], r["library"]) == (name, library)]
            healed = [100 * r["healed"] for r in these]
            spread = f" ± {stdev(healed):.2f}" if len(healed) > 1 else ""
            lines.append(
                f"| {name} | {library} | {len(these)} | {100 * these[0]['dense']:.2f} "
                f"| {mean(100 * r['pruned'] for r in these):.2f} | {mean(healed):.2f}{spread} "
                f"| {these[0]['macs']:.3f} |"
            )
    if not rows:
        lines.append("\nNot run yet.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
