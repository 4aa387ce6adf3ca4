"""How much the settings of a method matter, as a section of the page."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from benchmarks.sparse.design import FACTORS, SEEDS, SENSITIVITY, TWO, sensitivity


def verdict(differences: list[float]) -> str:
    """What seeds say of a claim: seen if all do, not seen if the mean is not above zero."""
    if len(differences) < len(SEEDS):
        return "not run on all seeds"
    if mean(differences) <= 0:
        return "**not seen**"
    return "seen" if min(differences) > 0 else "unclear"


def how_much_settings_matter(cells: dict[str, dict[str, Any]]) -> list[str]:
    """The section of the page on methods whose options were moved."""
    lines = [
        "## How much a setting matters",
        "",
        "One option times each factor, all else as above; mean accuracy over the seeds, and where",
        "the method is free to choose it, the sparsity. *Range* is the best less the worst of a",
        "row on one seed, in points, mean and standard deviation over seeds; the second one leaves",
        "the last factor out, which is beyond what `l1` survives.",
        "",
        "| method | sparsity | option | " + " | ".join(f"x{f:g}" for f in FACTORS)
        + f" | range | up to x{FACTORS[-2]:g} |",
        "|---|---|---|" + "---|" * (len(FACTORS) + 2),
    ]  # fmt: skip
    ranges: dict[tuple[str, float], list[float]] = {}
    for method, option, middle, amount in SENSITIVITY:
        table = [
            [cells.get(sensitivity(method, option, middle, amount, f, s).key) for f in FACTORS]
            for s in SEEDS
        ]
        done = [[r for r in row if r] for row in table]
        if not all(len(row) == len(FACTORS) for row in done):
            continue
        said = []
        for k in range(len(FACTORS)):
            text = f"{mean(row[k]['accuracy'] for row in done):.1%}"
            if amount is None:
                text += f" ({mean(row[k]['sparsity'] for row in done):.1%})"
            said.append(text)
        accuracies = [[100 * r["accuracy"] for r in row] for row in done]
        whole, found = (
            [max(a) - min(a) for a in x] for x in (accuracies, [a[:-1] for a in accuracies])
        )
        if amount is not None:
            ranges[method, amount] = found
        lines.append(
            f"| `{method}` | {f'{amount:.0%}' if amount else 'its own'} | `{option}`, {middle:g} | "
            f"{' | '.join(said)} | {_spread(whole)} | {_spread(found)} |"
        )
    for amount in TWO:
        ours, theirs = ranges.get(("autoprune", amount)), ranges.get(("l1", amount))
        if ours and theirs:
            seen = verdict([b - a for a, b in zip(ours, theirs, strict=True)])
            lines += [
                "",
                "That AutoPrune depends less on its settings than direct L1 (its paper), by the "
                f"second range at {amount:.0%}: {seen}.",
            ]
    back = [r["returned"] for r in cells.values() if "returned" in r]
    if back:
        lines += [
            "",
            "That pruned weights recover (the same paper) is "
            f"{'seen' if min(back) else 'unclear'}: of the weights that stay in the end, "
            f"{min(back):.0%} to {max(back):.0%} had been pruned at some time before.",
        ]
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}"
