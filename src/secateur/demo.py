"""The demonstration behind ``make demo``: half the MACs of a trained ResNet-20, proven and healed."""

import argparse
import logging
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import secateur as sec
from secateur.engine.checkpoint import digest
from secateur.report import Data, Metric

BATCH = 64  # images a forward that is measured


def main() -> None:
    """Prune ``zoo:resnet20``, fine-tune it briefly, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m secateur.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    torch.manual_seed(arguments.seed)
    console = Console()

    dense = sec.zoo.load("resnet20")
    train, _ = sec.zoo.loaders("resnet20", batch_size=128, seed=arguments.seed)

    def accuracy(model: nn.Module) -> float:
        return sec.zoo.evaluate(model, "resnet20")

    result = sec.prune(
        dense,
        sec.zoo.example_inputs("resnet20", BATCH),
        keep={"macs": 0.5},
        criterion="taylor",
        scope="global",
        data=train,
        recovery=sec.recovery.Distil(
            base=sec.recovery.FineTune(epochs=arguments.epochs, lr=0.02, schedule="one-cycle")
        ),
        evaluate=accuracy,
        metric=Metric("accuracy on the test images"),
        measure={"repeats": 50},
        seed=arguments.seed,
    ).described(
        title="ResNet-20 with half of its MACs",
        model="zoo:resnet20",
        command="make demo",
        data=Data(
            "FashionMNIST as it ships with secateur: 10,000 training and 2,000 test images",
            _digest(train),
        ),
    )
    folder = result.save(arguments.out)
    console.print(result)
    console.print(f"model    {folder / 'model.safetensors'}")
    console.print(f"report   {folder / 'report.html'}")


def _digest(loader: torch.utils.data.DataLoader) -> str:
    tensors = dict(zip(("images", "labels"), loader.dataset.tensors, strict=True))  # type: ignore[attr-defined]
    return f"sha256:{digest(tensors)[:16]}"


if __name__ == "__main__":
    main()
