"""Finished cells as a page of Markdown: every number in a table is computed from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.results.cell import CALIBRATION, EPOCHS, PEAK, REPEATS, STEPS, TIMED, Cell
from benchmarks.results.tables import WAYS

from secateur import zoo

Row = tuple[Cell, dict[str, Any]]
READING = Path(__file__).parent / "reading.md"
INTRODUCTION = f"""# Results: dense, pruned, healed

Made by `python -m benchmarks.results` from the finished cells in `benchmarks/results/cells/`; the
command may be stopped at any time and goes on where it was. One cell is one trained network of the
[zoo](zoo.md) that is traced, planned, cut, proven, tested, healed, tested again and timed.

- **pruned** is the accuracy right after the removal, **healed** after the same short training for
  all: {EPOCHS} epochs ({STEPS} steps where the data set is one graph) on the training data that
  ship with the package, with the network's own optimizer and {PEAK:g} of its own peak learning
  rate, one cycle.
- **MACs** and **parameters** say how many times fewer there are; the budget is always on MACs.
- **faster** is the measured ratio of forward times, dense over pruned: one thread, batches of
  {TIMED} (the graph: whole), medians of {REPEATS} interleaved runs of each, in processor time,
  which leaves out the waiting for other work on this machine; in brackets the 10th and 90th
  percentiles within pairs. The cells hold the same by the clock on the wall.
- **error** is the largest relative difference between the pruned network and its proof: the dense
  one with the same units zeroed, or, where a norm's statistics change with the width, computed
  over the units kept. *proven* means below the tolerance.
- **seconds** are those of one core for the whole cell, tests and timing included.
- Criteria that look at data see {CALIBRATION} batches of the training set. The seed is that of
  these batches, of `random`, and of the order of training; so the spread of a criterion that only
  looks at weights is that of training alone.
"""


def page(tables: Mapping[str, Sequence[Row]], wanted: Mapping[str, int]) -> str:
    """The whole page; a table that is not complete says so.

    Args:
        tables: finished cells of each table, in order.
        wanted: number of cells of each table.
    """
    sections = [INTRODUCTION, _reading(), _machine([r for t in tables.values() for r in t])]
    for name, rows in tables.items():
        if rows:
            sections.append(_SECTIONS[name](rows))
        if len(rows) < wanted[name]:
            sections.append(
                f"{len(rows)} of {wanted[name]} cells of this table are finished: "
                f"`python -m benchmarks.results {name}` computes the others.\n"
            )
    return "\n".join(sections)


def _reading() -> str:
    return READING.read_text(encoding="utf-8") if READING.exists() else ""


def _machine(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = {
        f"{e['processor']} ({e['platform']}), {e['threads']} thread, Python {e['python']}, torch "
        f"{e['torch']}, secateur {e['secateur']}"
        for e in (r["environment"] for _, r in rows)
    }
    different = {c.name: r for c, r in rows}.values()
    seconds = sum(r["seconds"]["total"] for r in different)
    proven = sum(r["verification"]["ok"] and r["verification"]["proven"] for r in different)
    exact = [r["verification"] for r in different if r["verification"]["exact"]]
    return (
        f"## The runs\n\nMeasured on {'; '.join(sorted(lines))}, a machine shared with other work: "
        f"{seconds / 60:.0f} minutes of one core for {len(different)} cells. {proven} of the "
        f"{len(different)} removals are proven; the largest error of the {len(exact)} that must be "
        "exact is "
        f"{max((v['error'] for v in exact), default=0):.1e}.\n"
    )


def _cnn(rows: Sequence[Row]) -> str:
    dense = [r["accuracy"]["dense"] for _, r in rows]
    control = [r["accuracy"]["healed"] for c, r in rows if c.keep == 1]
    seeds = sorted({c.seed for c, _ in rows})
    text = (
        f"## ResNet-20 on FashionMNIST\n\nScope `uniform`, tested on {_tested(rows[0][0])} images "
        f"(standard error of one accuracy: {_standard_error(rows[0]):.2f} points). Dense: "
        f"**{100 * dense[0]:.2f} %**"
    )
    if control:
        text += f"; dense with the same further training: {_spread(control)} %"
    text += (
        f". Mean ± standard deviation over seeds {', '.join(map(str, seeds))}; *against random* is "
        "the mean difference in healed accuracy within a seed. *new weights* is the control: the "
        "shape that `l2` leaves, trained from new random weights for as long.\n"
    )
    for keep in sorted({c.keep for c, _ in rows if c.keep < 1}, reverse=True):
        here = [(c, r) for c, r in rows if c.keep == keep]
        by_random = {c.seed: r["accuracy"]["healed"] for c, r in here if c.criterion == "random"}
        table = []
        for label in dict.fromkeys(_label(c) for c, _ in here):
            own = [(c, r) for c, r in here if _label(c) == label]
            gain = [
                r["accuracy"]["healed"] - by_random[c.seed] for c, r in own if c.seed in by_random
            ]
            table.append(
                [
                    label,
                    _spread([r["accuracy"]["pruned"] for _, r in own]),
                    _spread([r["accuracy"]["healed"] for _, r in own]),
                    "" if label == "random" else _spread(gain, signed=True),
                    *_costs(own),
                    f"{mean(r['seconds']['total'] for _, r in own):.0f}",
                ]
            )
        head = ["criterion", "pruned, %", "healed, %", "against random", *_COSTS, "seconds"]
        text += f"\n### {1 / keep:g} times fewer MACs\n\n{_table(head, table)}"
    return text


def _families(rows: Sequence[Row]) -> str:
    control = {c.network: r["accuracy"]["healed"] for c, r in rows if c.keep == 1}
    table = []
    for c, r in sorted(rows, key=lambda row: row[0].network):
        if c.keep == 1:
            continue
        accuracy, data = r["accuracy"], zoo.card(c.network)["data"]
        table.append(
            [
                f"{c.network} ({data})",
                c.criterion,
                f"{100 * accuracy['dense']:.2f}",
                f"{100 * control[c.network]:.2f}" if c.network in control else "",
                f"{100 * accuracy['pruned']:.2f}",
                f"**{100 * accuracy['healed']:.2f}**",
                *_costs([(c, r)]),
                f"{r['seconds']['total']:.0f}",
            ]
        )
    head = ["network", "criterion", "dense, %", "dense, trained on, %", "pruned, %", "healed, %"]
    return (
        "## The other networks\n\nOne seed, scope `uniform`, twice fewer MACs. *dense, trained on* "
        "is the control: nothing removed, the same further training.\n\n"
        + _table([*head, *_COSTS, "seconds"], table)
    )


def _scopes(rows: Sequence[Row]) -> str:
    text = (
        "## How much where\n\nResNet-20, seed 0, accuracy in %. After the batch norms were "
        f"recalibrated on {CALIBRATION} batches and nothing was trained, which is what there is to "
        "start from; then, where it was run, after fine-tuning. In brackets the smallest fraction "
        "of its channels that any layer keeps.\n"
    )
    for keep in sorted({c.keep for c, _ in rows}, reverse=True):
        found = {
            (c.criterion, way, c.recovery): r
            for c, r in rows
            if c.keep == keep
            for way, options in WAYS.items()
            if replace(c, **(_PLAIN | options)) == c
        }
        ways = [w for w in WAYS if any(w == key[1] for key in found)]
        criteria = dict.fromkeys(c.criterion for c, _ in rows if c.keep == keep)
        table = [[n, *(_scoped(found, n, way) for way in ways)] for n in criteria]
        text += f"\n### {1 / keep:g} times fewer MACs\n\n{_table(['criterion', *ways], table)}"
    return text


def _scoped(
    found: Mapping[tuple[str, str, tuple[str, ...]], dict[str, Any]], criterion: str, way: str
) -> str:
    start = found.get((criterion, way, ("bn",)))
    tuned = found.get((criterion, way, ("fine-tune",)))
    either = start or tuned
    if either is None:
        return ""
    narrowest = min(left / size for size, left in either["widths"].values())
    first = f"{100 * start['accuracy']['healed']:.1f}" if start else ""
    healed = f"**{100 * tuned['accuracy']['healed']:.1f}**" if tuned else ""
    return f"{' → '.join(filter(None, (first, healed)))} ({narrowest:.2f})"


def _recoveries(rows: Sequence[Row]) -> str:
    found = {(c.recovery, c.keep, c.criterion): r for c, r in rows}
    keeps = sorted({c.keep for c, _ in rows}, reverse=True)
    criteria = list(dict.fromkeys(c.criterion for c, _ in rows))
    there = {(k, c) for _, k, c in found}
    columns = [(k, c) for k in keeps for c in criteria if (k, c) in there]
    table = []
    for recovery in dict.fromkeys(c.recovery for c, _ in rows):
        cells = [found.get((recovery, k, c)) for k, c in columns]
        spent = [found.get((recovery, k, criteria[0])) for k in keeps]
        table.append(
            [
                ", then ".join(recovery) or "none",
                *(f"{100 * r['accuracy']['healed']:.2f}" if r else "" for r in cells),
                *(f"{r['seconds']['heal']:.1f}" if r else "" for r in spent),
            ]
        )
    head = ["recovery", *(f"{c}, {1 / k:g}x, %" for k, c in columns)]
    head += [f"seconds, {1 / k:g}x" for k in keeps]
    return (
        "## Ways of healing\n\nResNet-20, seed 0, scope `uniform`; `bn` and `least-squares` see "
        f"{CALIBRATION} batches and no label. Seconds are those of healing after `{criteria[0]}`."
        "\n\n" + _table(head, table)
    )


_SECTIONS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "cnn": _cnn,
    "families": _families,
    "scopes": _scopes,
    "recoveries": _recoveries,
}
_PLAIN = {"scope": "uniform", "max_ratio": None, "ignore": ()}
_COSTS = ("MACs", "parameters", "faster", "error")


def _costs(rows: Sequence[Row]) -> list[str]:
    results = [r for _, r in rows]
    fast = [r["faster"]["processor"] for r in results]
    proofs = [r["verification"] for r in results]
    proven = all(p["ok"] and p["proven"] for p in proofs)
    return [
        f"{mean(r['macs']['dense'] / r['macs']['pruned'] for r in results):.2f}x",
        f"{mean(r['parameters']['dense'] / r['parameters']['pruned'] for r in results):.2f}x",
        f"{mean(f['ratio'] for f in fast):.2f}x "
        f"({mean(f['p10'] for f in fast):.2f} to {mean(f['p90'] for f in fast):.2f})",
        f"{max(p['error'] for p in proofs):.0e}, {'proven' if proven else 'not proven'}"
        + ("" if all(p["exact"] for p in proofs) else ", statistical"),
    ]


def _label(c: Cell) -> str:
    return "new weights" if c.fresh else c.criterion


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    if not values:
        return ""
    sign = "+" if signed else ""
    text = f"{100 * mean(values):{sign}.2f}"
    return f"{text} ± {100 * stdev(values):.2f}" if len(values) > 1 else text


def _tested(c: Cell) -> int:
    card = zoo.card(c.network)
    return int(card["test_samples_full"] if c.full else card["test_samples"])


def _standard_error(row: Row) -> float:
    p, n = row[1]["accuracy"]["dense"], _tested(row[0])
    return float(100 * (p * (1 - p) / n) ** 0.5)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
