"""``python -m benchmarks.sparse``: train with every method, keep every finished cell, write a page.

    python -m benchmarks.sparse                    # all, resuming
    python -m benchmarks.sparse --only rigl --redo

A cell is one network trained from random weights with one method attached, on the training images
of FashionMNIST that ship with the package, tested on the test images that do.
"""

import argparse
import inspect
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sec
from secateur.methods import registry

HERE = Path(__file__).parent
CELLS = HERE / "cells.jsonl"
PAGE = HERE.parents[1] / "docs" / "sparse.md"
NETWORKS = ("lenet300", "resnet8")
AMOUNTS = (0.9, 0.98)
# Strengths that suit a run as short as this one; all else is the methods' defaults.
SHORT: dict[str, dict[str, float]] = {
    "continuous_sparsification": {"strength": 1e-5, "lr": 10.0},
    "soft_movement": {"strength": 100.0, "lr": 0.1},
    "l0": {"strength": 10.0, "lr": 0.1, "dropped": 0.1},
}
EPOCHS = {"lenet300": 10, "resnet8": 4}
DENSE = "dense"


def train(network: str, name: str, amount: float | None, seed: int) -> dict[str, Any]:
    """One cell: train, finish, test."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    batches, _ = sec.zoo.loaders(network, 128, seed)
    data = list(batches)
    net = sec.zoo.build(network)
    steps = EPOCHS[network] * len(batches)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=0.2)
    handle = None
    if name != DENSE:
        found = registry.entry(name)
        options: dict[str, Any] = dict(SHORT.get(name, {}))
        if "every" in found.options():
            options["every"] = 20
        if amount is not None:
            options["amount"] = amount
        extra: dict[str, Any] = {}
        if name == "autoprune":  # the paper's second stream, never seen by the weights
            batches, extra["validation"] = data[:-8], data[-8:]
        handle = sec.attach(
            net,
            optimizer,
            name,
            steps=steps,
            data=data[:2],
            example_inputs=sec.zoo.example_inputs(network),
            seed=seed,
            **extra,
            **options,
        )
    start = time.process_time()
    for _ in range(EPOCHS[network]):
        net.train()
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            cycle.step()
    seconds = time.process_time() - start
    cell: dict[str, Any] = {"sparsity": 0.0, "emptied": []}
    if handle is not None:
        result = handle.finish()
        cell = {"sparsity": round(result.masks.sparsity, 5), "emptied": result.masks.empty()}
    net.eval()
    accuracy = sec.zoo.evaluate(net, network)
    return {**cell, "accuracy": round(accuracy, 4), "seconds": round(seconds, 1)}


def wanted() -> list[tuple[str, str, float | None]]:
    """All cells: network, method, amount."""
    found: list[tuple[str, str, float | None]] = []
    for network in NETWORKS:
        found.append((network, DENSE, None))
        for name in [*registry.names("before"), *registry.names("during")]:
            takes = "amount" in inspect.signature(registry.entry(name).function).parameters
            found += [(network, name, a) for a in (AMOUNTS if takes else (None,))]
    return found


def load() -> dict[tuple[str, str, float | None], dict[str, Any]]:
    """The finished cells; the newest of each counts."""
    if not CELLS.exists():
        return {}
    rows = [json.loads(line) for line in CELLS.read_text(encoding="utf-8").splitlines()]
    return {(r["network"], r["method"], r["amount"]): r for r in rows}


def page(cells: dict[tuple[str, str, float | None], dict[str, Any]]) -> str:
    """The page of what is finished."""
    epochs = ", ".join(f"{n} {e} epochs" for n, e in EPOCHS.items())
    lines = [
        "# Sparse training: every method on the same run",
        "",
        "Made by `python -m benchmarks.sparse` from its finished cells. Each network is trained",
        f"from random weights ({epochs}; SGD, momentum 0.9, one cycle up to 0.1, batches of 128,",
        "one seed) on the 10,000 FashionMNIST images that ship with the package, with one method",
        "attached, and tested on the 2,000 that ship. Methods have their default options, but for",
        "`every`, 20 steps, and three strengths (`SHORT` in the script) that suit so short a run.",
        "*reached* is the measured sparsity of the weights of layers; methods whose",
        "sparsity follows from other settings show what they got. One seed: differences below",
        "about one point mean nothing (two standard errors on 2,000 images are 1.5 points).",
        "",
    ]
    for network in NETWORKS:
        rows = {k: c for k, c in cells.items() if k[0] == network}
        if not rows:
            continue
        dense = rows.get((network, DENSE, None))
        lines += [f"## {network}", ""]
        if dense:
            lines += [f"Dense: {dense['accuracy']:.1%} in {dense['seconds']:.0f} s.", ""]
        lines += [
            "| method | stage | asked | reached | accuracy | emptied layers | CPU time / dense |",
            "|---|---|---|---|---|---|---|",
        ]
        for (_, name, amount), c in sorted(
            rows.items(), key=lambda r: (r[0][2] or 0, -r[1]["accuracy"])
        ):
            if name == DENSE:
                continue
            asked = "own" if amount is None else f"{amount:.0%}"
            ratio = f"{c['seconds'] / dense['seconds']:.1f}" if dense else ""
            lines.append(
                f"| `{name}` | {c['stage']} | {asked} | {c['sparsity']:.1%} | {c['accuracy']:.1%} "
                f"| {len(c['emptied']) or ''} | {ratio} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--only", action="append", metavar="METHOD")
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--redo", action="store_true")
    options = parser.parse_args()
    done = load()
    for network, name, amount in wanted():
        if (options.only and name not in options.only) or (
            options.network and network not in options.network
        ):
            continue
        if (network, name, amount) in done and not options.redo:
            continue
        try:
            cell = train(network, name, amount, 0)
        except sec.SecateurError as error:
            print(f"{network} {name} {amount}: {error}")
            continue
        stage = "" if name == DENSE else registry.entry(name).stage
        row = {"network": network, "method": name, "amount": amount, "stage": stage, **cell}
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    PAGE.write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
