"""``python -m benchmarks.granularities``: trained networks pruned at every granularity, fine-tuned.

Resumes from ``granularities.json``; writes docs/granularities.md.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sec

HERE = Path(__file__).parent
CELLS = HERE / "granularities.json"
PAGE = HERE.parent / "docs" / "granularities.md"
SMALL = ["conv1", "*.shortcut*", "fc"]  # without kernels, or with a single input channel
# Network, granularity, amount, layers that stay dense, whether units are put in another order.
ROWS: dict[str, tuple[str, Any, float, list[str], bool]] = {
    "resnet8 pattern": ("resnet8", "pattern", 0.5, SMALL, False),
    "resnet8 2:4": ("resnet8", "2:4", 0.5, ["conv1"], False),
    "resnet8 2:4, permuted": ("resnet8", "2:4", 0.5, ["conv1"], True),
    "resnet8 3:4": ("resnet8", "3:4", 0.75, ["conv1"], False),
    "resnet8 3:4, permuted": ("resnet8", "3:4", 0.75, ["conv1"], True),
    "vit head": ("vit", "head", 0.25, [], False),
    "vit layer": ("vit", "layer", 0.25, [], False),
}


def run(network: str, granularity: Any, amount: float, ignore: list[str], permuted: bool) -> Any:
    """Prune in one shot by magnitude, test, train one epoch, test."""
    torch.manual_seed(0)
    net, inputs = sec.zoo.load(network), sec.zoo.example_inputs(network)
    found: dict[str, Any] = {"dense": sec.zoo.evaluate(net, network)}
    if permuted:
        order = sec.permute(sec.trace(net, inputs), granularity, ignore=ignore)
        net, found["kept"] = order.model, [order.before, order.after]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    handle = sec.attach(
        net, optimizer, "initial_magnitude", amount=amount, granularity=granularity,
        example_inputs=inputs, ignore=ignore,
    )  # fmt: skip
    found["sparsity"], found["cut"] = handle.sparsity, sec.zoo.evaluate(net, network)
    train, _ = sec.zoo.loaders(network, 128, seed=0)
    net.train()
    for *x, y in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(*x), y).backward()
        optimizer.step()
    handle.finish()
    found["tuned"] = sec.zoo.evaluate(net, network)
    return found


def page(found: dict[str, Any]) -> str:
    """The page, from the finished rows."""
    lines = [
        "# Granularities: what goes as one\n",
        "Made by `python -m benchmarks.granularities` from its finished cells in",
        "`benchmarks/granularities.json`. Trained networks of the zoo are pruned in one shot by",
        '`sec.attach(net, optimizer, "initial_magnitude", granularity=...)` and trained one epoch',
        "on the 10,000 FashionMNIST images that ship (SGD, momentum 0.9, rate 0.01, batches of",
        "128), then tested on the 2,000 that ship. One seed; the standard error of an accuracy is",
        "about 0.6 points.\n",
        "`pattern` keeps 4 of 9 weights of every 3x3 kernel in one of 8 shapes; `head` takes a",
        "quarter of the weights that make attention heads, `layer` a quarter of the residual",
        "branches. *Permuted*: `sec.permute` first; *kept*: the share of the magnitude that the",
        "pattern keeps in the old and the new order of the channels.\n",
        "| granularity | zeros, ignored layers apart | dense | pruned | one epoch later | kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        kept = " to ".join(f"{k:.2%}" for k in r.get("kept", ()))
        lines.append(
            f"| {name} | {r['sparsity']:.1%} | {r['dense']:.2%} | {r['cut']:.2%} | "
            f"{r['tuned']:.2%} | {kept} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, write the page."""
    torch.set_num_threads(1)
    found = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else {}
    for name, how in ROWS.items():
        if name not in found:
            found[name] = run(*how)
            CELLS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, found[name], flush=True)
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
