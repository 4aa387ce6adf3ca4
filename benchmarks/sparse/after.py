"""Methods after training: the run of a cell, and the section of the page."""

from __future__ import annotations

import copy
import time
from functools import cache
from typing import Any

from benchmarks.sparse.cell import accuracy, batches, optimizer_of, train
from benchmarks.sparse.design import DENSE, RETRAINED, TWO, Cell
from torch import nn

import secateur as sec
from secateur.measure.macs import macs

CALIBRATION = 16  # batches of training images that methods after training see
ON_WEIGHTS = "lenet300"  # whole channels go on the other network
RATE = 0.01  # of the retraining, a tenth of the peak of training


def run(cell: Cell, limit: int | None = None) -> dict[str, Any]:
    """Prune the trained network, test it, train what is left a little, test again."""
    dense, before = _trained(cell.network, cell.seed, limit)
    net = copy.deepcopy(dense)
    inputs = sec.zoo.example_inputs(cell.network)
    seen = batches(cell.seed, 0, limit, 0)[:CALIBRATION]
    found: dict[str, Any] = {"dense": before}
    masks, start = None, time.process_time()
    if cell.network == ON_WEIGHTS:
        done = sec.sparsify(net, cell.method, data=seen, progress=False, **cell.options)
        net, masks = done.model, done.masks
        found["sparsity"] = masks.sparsity
    else:
        removed = sec.prune(
            net, inputs, method=cell.method, data=seen, measure=False, progress=False,
            seed=cell.seed, **cell.options,
        )  # fmt: skip
        if not removed.verification.ok:
            raise AssertionError(f"{cell.key}: removal changed what the network computes")
        net = removed.model
    found["seconds"] = time.process_time() - start
    found["macs"] = macs(net, inputs)[0] / macs(dense, inputs)[0]
    found["pruned"] = accuracy(net)
    _retrain(net, masks, cell.seed, limit)
    found["accuracy"] = accuracy(net)
    return {k: round(v, 5) for k, v in found.items()}


@cache
def _trained(network: str, seed: int, limit: int | None) -> tuple[nn.Module, float]:
    net, found = train(Cell("weights", network, DENSE, "own", seed), limit)
    return net, found["accuracy"]


def _retrain(net: nn.Module, masks: sec.MaskSet | None, seed: int, limit: int | None) -> None:
    optimizer = optimizer_of(net, RATE)
    if masks is not None:
        sec.attach(net, optimizer, masks)
    net.train()
    for epoch in range(RETRAINED):
        for images, labels in batches(seed, epoch, limit, 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()


def section(cells: dict[str, dict[str, Any]]) -> list[str]:
    """The tables of methods after training."""
    mine = [c for c in cells.values() if c["kind"] == "after"]
    if not mine:
        return []
    lines = [
        "## After training",
        "",
        f"The dense network, trained as above, is pruned with {CALIBRATION} batches of its",
        "training images as calibration; *pruned* is its accuracy then, *retrained* after",
        f"{RETRAINED} more epochs at a rate of {RATE:g} with the zeros held. One seed.",
        "",
    ]
    for network in dict.fromkeys(c["network"] for c in mine):
        here = [c for c in mine if c["network"] == network]
        rows = _weights(here) if network == ON_WEIGHTS else _channels(here)
        lines += [f"Dense {network}: {here[0]['dense']:.1%}.", "", *rows, ""]
    return lines


def _weights(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | " + " | ".join(f"{a:.0%}: pruned | retrained" for a in TWO) + " | CPU s |",
        "|---|" + "---|" * (2 * len(TWO) + 1),
    ]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault(row["method"], {})[row["setting"]] = row
    amounts = [f"{a:.1%}" for a in TWO]
    both = [(m, [t[a] for a in amounts]) for m, t in table.items() if {*amounts} <= {*t}]
    for method, found in sorted(both, key=lambda item: -item[1][-1]["pruned"]):
        figures = " | ".join(f"{r['pruned']:.1%} | {r['accuracy']:.1%}" for r in found)
        lines.append(f"| `{method}` | {figures} | {max(r['seconds'] for r in found):.1f} |")
    if "sparsellm" in table:
        lines += ["", "`sparsellm` finds no MLP of a transformer here: it is SparseGPT."]
    for method, by_setting in table.items():
        if row := by_setting.get("own"):
            lines += [
                "",
                f"`{method}` chooses its own sparsity: {row['sparsity']:.1%}, {row['pruned']:.1%} "
                f"pruned and {row['accuracy']:.1%} retrained.",
            ]
    return lines


def _channels(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Channels are removed for real, proven, by `sec.prune(method=...)`: 30 % or 50 % of them.",
        "*Pruned* includes what the method itself does afterwards (least squares, tuning, for",
        "`dcp` an epoch of training).",
        "",
        "| method | asked | fewer MACs | pruned | retrained | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["setting"], -r["accuracy"])):
        lines.append(
            f"| `{row['method']}` | {row['setting']} | {1 / row['macs']:.1f} times | "
            f"{row['pruned']:.1%} | {row['accuracy']:.1%} | {row['seconds']:.1f} |"
        )
    return lines
