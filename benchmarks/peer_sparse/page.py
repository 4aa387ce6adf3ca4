"""The page docs/overhead.md from the finished cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOAL = 1.05
HEAD = """# What attached masks cost, beside torch's own pruning tools

Made by `python -m benchmarks.peer_sparse` from `benchmarks/peer_sparse/cells.json` (`--redo`
measures again). All tools mask 90 % of the weights of every layer of the same network and train it
with SGD, momentum and weight decay, on one thread. The peers are the `torch.nn.utils.prune` and
`torch.ao.pruning` of the same torch.
"""


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [HEAD, "## Time of a step", ""]
    lines += [
        "CPU milliseconds of a step of training (batch of 128), the tools taking turns in one",
        "process; *ratio* is that of the medians, *p10* and *p90* of the ratio within rounds. The",
        f"goal for masks alone is a ratio below {GOAL:g}. Masks cost by their weights (three",
        "passes: are the gradients finite, gradients, weights), a step by how often each",
        "weight is used: masks weigh most on layers that see few rows of input, least on",
        "convolutions. *wide* is 1024-1024-10.",
        "",
    ]
    for name, rows in found.items():
        if not name.startswith("times "):
            continue
        lines += [
            f"### {name.removeprefix('times ')}",
            "",
            "| | rounds | ms | ratio | p10 | p90 |",
            "|---|---:|---:|---:|---:|---:|",
            *(
                f"| {r['tool']} | {r['rounds']} | {r['ms']:.2f} | {r['ratio']:.3f} "
                f"| {r['p10']:.2f} | {r['p90']:.2f} |"
                for r in rows
                if "ms" in r
            ),
            *(f"| {r['tool']} | | {r['cause']} | | | |" for r in rows if "ms" not in r),
            "",
            *_verdict(rows),
        ]
    lines += ["## Memory over steps", ""]
    growth = [r for n, r in found.items() if n.startswith("growth ")]
    if growth:
        steps = growth[0]["steps"]
        lines += [
            "Bytes of all live tensors (model, optimizer, masks; no gradients), LeNet-300-100.",
            "",
            f"| | {' | '.join(f'after {s} steps' for s in steps)} | grows by |",
            f"|---|{'---:|' * (len(steps) + 1)}",
            *(
                f"| {r['tool']} | {' | '.join(f'{b:,}' for b in r['bytes'])} "
                f"| {r['bytes'][-1] - r['bytes'][0]:,} |"
                for r in growth
            ),
            "",
        ]
    lines += ["## State dicts", ""]
    states = [r for n, r in found.items() if n.startswith("states ")]
    if states:
        lines += [
            "After three steps on LeNet-300-100, while the tool acts: names of the plain network",
            "that are gone and names that are new, size beside the plain one, whether the plain",
            "network loads it, whether the model can be deep-copied, and how many of the slots of",
            "the optimizer hold numbers where the mask is zero. Then the tool is ended as its",
            "manual says: the fraction of zeros in the weights, and whether the names are plain",
            "again.",
            "",
            "| | gone | new | size | loads | deepcopy | slots not zero | zeros | plain again |",
            "|---|---:|---:|---:|---|---|---|---:|---|",
            *(
                f"| {r['tool']} | {r['renamed']} | {r['added']} | {r['bytes']:.2f} "
                f"| {_yes(r['loads'])} | {_yes(r['copies'])} | {r['dirty slots']} "
                f"| {r['zeros at the end']:.3f} | {_yes(r['plain at the end'])} |"
                for r in states
            ),
            "",
            "Gradual magnitude was ended after three of the 10,000 steps of its schedule.",
            "",
        ]
    if "goldens" in found:
        lines += [
            "## Values of JaxPruner's tests",
            "",
            "| value | theirs | ours | equal |",
            "|---|---|---|---|",
            *(
                f"| {g['value']} | {g['golden']} | {g['ours']} | {_yes(g['equal'])} |"
                for g in found["goldens"]
            ),
            "",
        ]
    return "\n".join(lines)


def _verdict(rows: list[dict[str, Any]]) -> list[str]:
    ours = next((r for r in rows if "fixed masks" in r["tool"]), None)
    if ours is None:
        return []
    met = "met" if ours["ratio"] < GOAL else "not met"
    return [f"The goal is {met}: fixed masks take {ours['ratio'] - 1:+.1%}.", ""]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
