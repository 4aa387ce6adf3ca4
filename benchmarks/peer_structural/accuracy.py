"""Accuracy at equal MACs and equal fine-tuning: networks of the zoo, the L2 norm of a group."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.peer_structural.libraries import Clock, output_layers, theirs
from benchmarks.peer_structural.store import append, load
from torch import nn

import secateur as sec
from secateur import zoo
from secateur.recovery import FineTune
from secateur.zoo.registry import network

KEEP = 0.5  # of the MACs
EPOCHS = 2
PEAK = 0.2  # learning rate, as a part of the one that the network was trained with
NETWORKS = {"resnet20": (0, 1, 2), "lenet5": (0,), "vgg_bn": (0,)}
LIBRARIES = ("secateur", "torch-pruning")


def macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Counted the same way for both."""
    count = sec.measure(model, inputs, repeats=0).macs
    assert count is not None
    return int(count)


def by_peer(name: str, inputs: tuple[Any, ...]) -> nn.Module:
    """The peer's model with the smallest uniform ratio that meets the budget, by bisection."""
    dense = zoo.load(name)
    outer = output_layers(dense, (inputs, {}))
    budget, low, high = KEEP * macs(dense, inputs), 0.0, 0.9
    best = dense
    for _ in range(9):
        ratio = (low + high) / 2
        model = zoo.load(name)
        theirs(model, (inputs, {}), outer, Clock(), "l2", amount=ratio)
        if macs(model, inputs) <= budget:
            best, high = model, ratio
        else:
            low = ratio
    return best


def run(name: str, library: str, seed: int) -> dict[str, Any]:
    """Prune, test, fine-tune, test."""
    torch.manual_seed(seed)
    start = time.process_time()
    dense, inputs = zoo.load(name), zoo.example_inputs(name, 2)
    if library == "secateur":
        plan = sec.plan(sec.trace(dense, inputs), keep={"macs": KEEP}, criterion="l2")
        small = plan.apply(dense)
    else:
        small = by_peer(name, inputs).eval()
    recipe = network(name).RECIPE
    pruned = zoo.evaluate(small, name, full=True, batch_size=250)
    kept = macs(small, inputs) / macs(dense, inputs)
    data, _ = zoo.loaders(recipe.data, recipe.batch_size, seed)
    torch.manual_seed(seed)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    FineTune(
        epochs=EPOCHS,
        lr=PEAK * recipe.lr,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        schedule="one-cycle",
        seed=seed,
        progress=False,
    ).heal(small, None, data, dense)
    return {
        "dense": zoo.evaluate(dense, name, full=True, batch_size=250),
        "pruned": pruned,
        "healed": zoo.evaluate(small, name, full=True, batch_size=250),
        "macs": round(kept, 4),
        "seconds": round(time.process_time() - start, 1),
    }


def main(folder: Path) -> None:
    """Run what is missing, both libraries of a seed after one another."""
    torch.set_num_threads(1)
    done = {(r["network"], r["library"], r["seed"]) for r in load("accuracy", folder)}
    for name, seeds in NETWORKS.items():
        for seed in seeds:
            for library in LIBRARIES:
                if (name, library, seed) not in done:
                    row = {"network": name, "library": library, "seed": seed}
                    row |= run(name, library, seed)
                    append("accuracy", row, folder)
                    sys.stderr.write(f"{row}\n")
