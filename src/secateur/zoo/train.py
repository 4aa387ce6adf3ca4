"""Train networks of the zoo and write weights and card: `python -m secateur.zoo.train NAME`."""

import argparse
import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from secateur.errors import DataError
from secateur.zoo.recipe import Recipe
from secateur.zoo.registry import (
    WEIGHTS,
    build,
    data_set,
    evaluate,
    load_data,
    loaders,
    network,
    read_weights,
)


def train(
    name: str, *, seed: int = 0, full: bool = True, console: Console | None = None
) -> nn.Module:
    """Train a network from random weights by its recipe, on the whole training set.

    Args:
        name: the network.
        seed: of initial weights, order, augmentation and dropout.
        full: False trains on the embedded part only.
        console: where the progress bar goes; None shows none.

    Returns:
        The model of the last epoch: no choosing of epochs by the test set.

    Raises:
        ConfigError: there is no such network.
        DataError: the data are missing.
    """
    recipe: Recipe = network(name).RECIPE
    torch.manual_seed(seed)
    model = build(name).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    batches, _ = loaders(recipe.data, recipe.batch_size, seed, full=full)
    augment = getattr(data_set(recipe.data), "augment", None)
    chance = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * len(batches)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps, pct_start=0.2)
    columns = ("{task.description}", BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    bar.disable = console is None
    with bar:
        task = bar.add_task(name, total=steps, loss=float("nan"))
        for epoch in range(recipe.epochs):
            model.train()
            seen = summed = 0.0
            for *inputs, target in batches:
                if augment is not None:
                    inputs = augment(inputs, chance)
                loss = cross_entropy(model(*inputs), target, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                seen, summed = seen + 1, summed + loss.item()
                bar.update(task, advance=1, loss=summed / seen)
            bar.update(task, description=f"{name} epoch {epoch + 1}/{recipe.epochs}")
    return model.eval()


def write(model: nn.Module, name: str, folder: Path, **known: Any) -> dict[str, Any]:
    """Write float16 weights and the card; the card's accuracy is that of the file read back."""
    path = folder / f"{name}.safetensors"
    halves = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    unfinished = path.with_suffix(".part")
    save_file(halves, unfinished)
    unfinished.chmod(0o644)  # safetensors writes files that only their owner can read
    stored = build(name)
    read_weights(stored, unfinished)
    recipe: Recipe = network(name).RECIPE
    embedded = _count(recipe.data, "test", full=False)
    card: dict[str, Any] = {
        "name": name,
        "data": recipe.data,
        "accuracy": round(evaluate(stored, name), 5),
        "accuracy_float32": round(evaluate(model, name), 5),
        "test_samples": embedded,
        "accuracy_full": None,  # where there is no larger test set, or it is not at hand
        "test_samples_full": None,
    }
    with suppress(DataError):
        whole = _count(recipe.data, "test", full=True)
        if whole > embedded:
            card["accuracy_full"] = round(evaluate(stored, name, full=True), 5)
            card["test_samples_full"] = whole
    card |= {
        "parameters": sum(p.numel() for p in stored.parameters()),
        "bytes": unfinished.stat().st_size,
        "sha256": hashlib.sha256(unfinished.read_bytes()).hexdigest(),
        "licence": f"weights: Apache-2.0; data: {data_set(recipe.data).LICENCE}",
        "recipe": asdict(recipe),
        **known,
        "torch": torch.__version__,
    }
    text = path.with_suffix(".json.part")
    text.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    os.replace(text, path.with_suffix(".json"))
    return card


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr)
    return torch.optim.SGD(groups, recipe.lr, momentum=0.9, nesterov=True)


def _count(name: str, split: str, *, full: bool) -> int:
    *_, target = load_data(name, split, full=full)[:]  # type: ignore[misc]
    return int((target >= 0).sum())


def main() -> None:
    """Parse the command line, train, write."""
    parser = argparse.ArgumentParser(prog="python -m secateur.zoo.train", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedded", action="store_true", help="train on the embedded part only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for weights and card")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for name in arguments.names:
        start = time.perf_counter()
        full = not arguments.embedded
        model = train(name, seed=arguments.seed, full=full, console=console)
        seconds = round(time.perf_counter() - start, 1)
        option = "" if full else " --embedded"
        command = f"python -m secateur.zoo.train {name} --seed {arguments.seed}{option}"
        samples = _count(network(name).RECIPE.data, "train", full=full)
        known = {"command": command, "seed": arguments.seed, "train_samples": samples}
        card = write(model, name, arguments.out, **known, seconds=seconds)
        console.print_json(data=card)


if __name__ == "__main__":
    main()
