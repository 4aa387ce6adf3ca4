"""docs/tickets.md from the finished cells."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.tickets.experiments import AMOUNTS, EPOCHS, RETRAIN, ROUNDS

Cells = Mapping[str, Mapping[str, Any]]
NAMES = {
    "search rewind": "iterative, back to the initial weights",
    "search rewind-late": "iterative, back to the weights of half an epoch",
    "search rewind-rate": "iterative, weights go on, the learning rate goes back",
    "search fine-tune": "iterative, weights go on at a tenth of the rate",
    "search from-scratch": "iterative, to other initial weights, the same each round",
    "again new-weights": "masks of the first row, new weights",
    "again shuffled": "masks of the first row, shuffled inside each layer, initial weights",
    "one-shot rewind": "at once, back to the initial weights",
    "one-shot fine-tune": "at once, weights go on at a tenth of the rate",
}


def percent(value: float) -> str:
    """One decimal."""
    return f"{100 * value:.1f}"


def seeds(cells: Cells, name: str) -> list[Mapping[str, Any]]:
    """All seeds of a cell."""
    return [row for key, row in sorted(cells.items()) if key.rsplit(" ", 1)[0] == name]


def spread(values: Sequence[float]) -> str:
    """The mean; with several seeds also the lowest and the highest."""
    if len(values) == 1:
        return percent(values[0])
    return f"{percent(mean(values))} ({percent(min(values))}-{percent(max(values))})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def rounds(cells: Cells) -> list[str]:
    """What follows a pruning, against the amount."""
    found = {n: rows for n in NAMES if (rows := seeds(cells, n))}
    if not found:
        return []
    removed = next(iter(found.values()))[0]["removed"]
    head = ["removed, %", *(percent(r) if r < 0.99 else f"{100 * r:.2f}" for r in removed), "seeds"]
    body = [
        [
            NAMES[name],
            *(spread([row["accuracy"][k] for row in rows]) for k in range(len(removed))),
            str(len(rows)),
        ]
        for name, rows in found.items()
    ]
    whole = sorted({row["dense"] for rows in found.values() for row in rows})
    return [
        "## What follows a pruning",
        "",
        f"Test accuracy in % after {ROUNDS} rounds, each of which removes half of the weights that",
        "are left (the smallest over all layers; a layer keeps at least one), and after pruning to",
        f"the same amounts at once. Dense: {spread(whole)} %. Where there are several",
        "seeds, the range is the lowest and the highest.",
        "",
        *table(head, body),
        *claims(cells),
    ]


def claims(cells: Cells) -> list[str]:
    """What the papers say, and whether it is seen here."""

    def last(name: str, k: int = -1) -> float | None:
        rows = seeds(cells, name)
        return mean(row["accuracy"][k] for row in rows) if rows else None

    pairs = [
        ("Initial weights beat new weights on the same masks", "search rewind",
         "again new-weights", True),
        ("Masks of tickets beat random places in each layer", "search rewind", "again shuffled",
         True),
        ("Iterative beats one-shot, both rewound", "search rewind", "one-shot rewind", True),
        ("Iterative beats one-shot, both fine-tuned", "search fine-tune", "one-shot fine-tune",
         True),
        ("Rewinding the learning rate is as good as rewinding weights", "search rewind-rate",
         "search rewind", False),
        ("Rewinding late is at least as good as resetting", "search rewind-late", "search rewind",
         False),
    ]  # fmt: skip
    rows = []
    for said, a, b, strictly in pairs:
        first, second = last(a), last(b)
        if first is not None and second is not None:
            gap = 100 * (first - second)
            noise = 2.3  # two standard errors of a difference near 84 % on 2,000 images
            if strictly:
                verdict = "seen" if gap > noise else "not seen: within the noise"
            else:
                verdict = "seen" if gap > -noise else "not seen"
            if gap < -noise:
                verdict = "the opposite"
            rows.append([said, f"{gap:+.1f}", verdict])
    if not rows:
        return []
    return [
        f"At the highest amount, {100 * (1 - 0.5**ROUNDS):.2f} %, in points; differences below",
        "2.3 points, two standard errors on 2,000 images, count as noise:",
        "",
        *table(["claim", "difference", "here"], rows),
    ]


def curves(cells: Cells) -> list[str]:
    """The five curves of Han et al."""
    kinds = {
        "L2, without retraining": ("curve l2 one-shot", "bare"),
        "L1, without retraining": ("curve l1 one-shot", "bare"),
        "L1, retrained": ("curve l1 one-shot", "accuracy"),
        "L2, retrained": ("curve l2 one-shot", "accuracy"),
        "L2, pruned and retrained in rounds": ("curve l2 iterative", "accuracy"),
    }
    rows = []
    for label, (name, key) in kinds.items():
        found = seeds(cells, name)
        if found:
            dense = found[0]["dense"]
            loss = [f"{100 * (value - dense):+.1f}" for value in found[0][key]]
            rows.append([label, percent(dense), *loss])
    if not rows:
        return []
    head = ["", "dense, %", *(f"{a:.0%}" for a in AMOUNTS)]
    return [
        "## Regularisation, retraining and rounds",
        "",
        "The five curves of Han et al. (arXiv:1506.02626): a network trained with an L1 or L2",
        "penalty, pruned by magnitude over all layers; points of accuracy against the dense",
        f"network, by the fraction removed. Retraining is {RETRAIN} epochs at a tenth of the rate.",
        "",
        *table(head, rows),
    ]


def stability(cells: Cells) -> list[str]:
    """Barriers."""
    rows = []
    for step in (0, 20, 79):
        row = [str(step)]
        for amount in (0.0, 0.95):
            found = seeds(cells, f"stability {step} {amount}")
            row.append(
                f"{100 * found[0]['height']:.1f} (ends {percent(mean(found[0]['ends']))})"
                if found
                else ""
            )
        if any(row[1:]):
            rows.append(row)
    if not rows:
        return []
    return [
        "## Linear mode connectivity",
        "",
        "Two copies from step k on that differ in the order of the data alone: how far",
        "accuracy on the line between them falls, in points, below the straight line between",
        "the ends.",
        "",
        *table(["step k", "dense", "ticket, 95 % removed"], rows),
    ]


def transfer(cells: Cells) -> list[str]:
    """Tickets on other data."""
    found = seeds(cells, "transfer")
    if not found:
        return []
    row = found[0]
    head = ["removed, %", *(percent(r) if r < 0.99 else f"{100 * r:.2f}" for r in row["removed"])]
    names = {"digits": "own ticket", "clothes": "ticket of clothes", "random": "random places"}
    body = [[label, *(percent(v) for v in row[key])] for key, label in names.items()]
    return [
        "## Transfer to other data",
        "",
        "Tickets of FashionMNIST (masks and initial weights) trained on scikit-learn's digits,",
        "beside tickets found there and masks with as many weights of each layer at random",
        f"places; accuracy in % on 500 digits. Dense: {percent(row['dense'])} %.",
        "",
        *table(head, body),
    ]


def graphs(cells: Cells) -> list[str]:
    """Graph tickets."""
    rows = []
    for network in ("gcn", "gat"):
        for kind, label in (("tickets", "ticket"), ("random", "random")):
            for row in seeds(cells, f"graph {network} {kind}"):
                pairs = zip(row["removed"], row["edges"], row["accuracy"], strict=True)
                rows += [
                    [network, label, f"{100 * w:.1f}", f"{100 * e:.1f}", percent(a)]
                    for w, e, a in pairs
                ]
                if "dense" in row:
                    rows.append([network, "dense", "0", "0", percent(row["dense"])])
    if not rows:
        return []
    return [
        "## Graph tickets",
        "",
        "UGS on the WordNet graph: weights and edges removed together, and as many at random; each",
        "trained for 60 epochs from the initial weights. Where random is not lower, the search has",
        "bought nothing.",
        "",
        *table(["network", "", "weights removed, %", "edges removed, %", "accuracy, %"], rows),
    ]


def others(cells: Cells) -> list[str]:
    """Single cells: Early-Bird, elastic tickets, LeNet-5."""
    lines: list[str] = []
    for row in seeds(cells, "early-bird"):
        when = f"at step {row['drawn']}" if row["drawn"] else "not in ten epochs"
        lines += [
            "## Early-Bird",
            "",
            f"ResNet-8, half of the channels, a look every {row['every']} steps: the ticket was",
            f"drawn {when}; largest distances to the masks before: "
            f"{', '.join(f'{d:.2f}' for d in row['distances']) or 'none'}.",
            f"With {percent(row['macs'])} % of the MACs it reached {percent(row['accuracy'])} %,",
            f"the dense network {percent(row['dense'])} % with the same training.",
            "",
        ]
    for row in seeds(cells, "elastic"):
        a = row["accuracy"]
        lines += [
            "## Elastic tickets",
            "",
            "A ticket of a ResNet with two blocks a stage, stretched to three, 90 % removed, two",
            "epochs; accuracy in %:",
            "",
            *table(
                ["the shallow ticket", "stretched", "the deep network's own", "random places"],
                [[percent(a[k]) for k in ("source", "stretched", "own", "random")]],
            ),
        ]
    return lines


def compression(cells: Cells) -> list[str]:
    """The smallest LeNets that lose at most half a point."""
    rows = []
    for name, label in (("search rewind", "LeNet-300-100"), ("lenet5 rewind", "LeNet-5")):
        for row in seeds(cells, name)[:1]:
            good = [
                (r, a)
                for r, a in zip(row["removed"], row["accuracy"], strict=True)
                if a >= row["dense"] - 0.005
            ]
            if good:
                r, a = good[-1]
                rows.append([label, f"{1 / (1 - r):.0f}x", percent(row["dense"]), percent(a)])
    if not rows:
        return []
    return [
        "## How small the LeNets get",
        "",
        "The largest amount of the rounds above (back to the initial weights) that costs at most",
        "half a point, as weights of the dense network over weights left. AutoPrune's authors",
        "report 310x for LeNet-5 without loss (abstract of the NeurIPS 2019 paper), on MNIST,",
        "which is easier than the clothes here: not comparable.",
        "",
        *table(["network", "compression", "dense, %", "ticket, %"], rows),
    ]


def page(cells: Cells) -> str:
    """The page of what is finished."""
    epochs = EPOCHS["lenet300"]
    lines = [
        "# Tickets: what follows a pruning",
        "",
        "Made by `python -m benchmarks.tickets` from its finished cells (`--page` writes it anew).",
        "LeNet-300-100 on the 10,000 FashionMNIST images that ship with the package, tested on the",
        f"2,000 that ship, unless something else is said; every training is {epochs} epochs of SGD",
        "(momentum 0.9, weight decay 5e-4, cosine from 0.1, batches of 128). The runs are short:",
        "the dense network is far from converged, and a pruned one may well be better than it.",
        "",
        *rounds(cells),
        *curves(cells),
        *stability(cells),
        *transfer(cells),
        *graphs(cells),
        *others(cells),
        *compression(cells),
    ]
    return "\n".join(lines).rstrip() + "\n"
