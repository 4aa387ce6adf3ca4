"""The page of what is finished: tables, and what the papers say beside what is seen."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.sparse.after import section as after_training
from benchmarks.sparse.design import (
    COMPRESSION,
    CONTROLLED,
    CONTROLS,
    CURVE,
    DENSE,
    EPOCHS,
    FASHION,
    HAN,
    MNIST,
    REPRESENTATIVE,
    RETRAINED,
    ROUNDS,
    SEEDS,
    SETTLED,
    TWO,
    wanted,
)
from benchmarks.sparse.settings import how_much_settings_matter, verdict

PAGE = Path(__file__).parents[2] / "docs" / "sparse.md"
Rows = list[dict[str, Any]]

# What a paper says of two methods, and where: the first is the better one.
CLAIMS = (
    ("rigl", "random", (0.9, 0.95, 0.98, 0.99), "arXiv:1911.11134: RigL beats a static mask"),
    ("set", "random", (0.9, 0.95, 0.98, 0.99), "arXiv:1707.04780: so does SET"),
    ("granet", "rigl", (0.9, 0.95, 0.98, 0.99), "arXiv:2106.10404: GraNet beats RigL"),
    ("snip", "random", (0.9, 0.95, 0.98, 0.99), "arXiv:1810.02340: SNIP finds more than chance"),
    ("synflow", "initial_magnitude", (0.95, 0.98, 0.99), "arXiv:2006.05467: SynFlow at high "
     "sparsity beats magnitude"),
    ("synflow", "snip", (0.98, 0.99), "arXiv:2006.05467: and SNIP"),
    ("force", "snip", (0.98, 0.99), "arXiv:2006.09081: rounds beat one shot at high sparsity"),
    ("grasp", "snip", (0.95, 0.98, 0.99), "arXiv:2002.07376: GraSP beats SNIP at high sparsity"),
    ("dual_ticket", "random", (0.9, 0.95, 0.98), "arXiv:2203.04248: a random mask made trainable "
     "beats a random mask"),
    ("gradual_magnitude", "snip", (0.9, 0.95, 0.98, 0.99), "arXiv:2009.08576: pruning while "
     "training beats pruning before it"),
    ("gradual_magnitude", "rigl", (0.9, 0.95, 0.98), "arXiv:1911.11134: dense-to-sparse is still "
     "ahead of sparse-to-sparse in the same number of steps"),
    ("movement", "gradual_magnitude", (0.95, 0.98, 0.99), "arXiv:2005.07683: movement beats "
     "magnitude at high sparsity (there: fine-tuning of a language model)"),
    ("pdp", "gradual_magnitude", (0.9, 0.95, 0.98), "arXiv:2305.11203: PDP beats magnitude"),
)  # fmt: skip


def page(cells: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    rows = list(cells.values())
    return "\n".join([
        *_head(set(cells)), *_weights(rows), *_curve(rows), *_claims(rows),
        *how_much_settings_matter(cells),
        *_controls(rows), *_collapse(rows), *_compression(rows), *_channels(rows),
        *after_training(cells),
    ])  # fmt: skip


def of(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values."""
    return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def accuracies(rows: Rows, method: str, amount: float, control: str = "") -> dict[int, float]:
    """By seed, on single weights."""
    known = of(rows, kind="weights", method=method, setting=f"{amount:.1%}", control=control)
    return {r["seed"]: r["accuracy"] for r in known}


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation over seeds, in per cent."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1%}"
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f} %"


def _head(done: set[str]) -> list[str]:
    asked = {c.key for c in wanted()}
    epochs = ", ".join(f"{n} {e} epochs" for n, e in EPOCHS.items())
    return [
        "# Sparse training: every method on the same run",
        "",
        "Made by `python -m benchmarks.sparse` from its finished cells, which are in",
        "`benchmarks/sparse/cells.jsonl`. Each network is trained from random weights with one",
        f"method attached ({epochs}; SGD, momentum 0.9, weight decay 5e-4, one cycle up to 0.1,",
        "batches of 128) on the 10,000 FashionMNIST images that ship with the package, and tested",
        "on the 2,000 that ship. Methods before training score on two batches. `autoprune`, `dsa`",
        "and `dmcp` learn their auxiliaries on 1,024 of the images, which the weights never see.",
        "Options are the methods' defaults, but for `every`, 20 steps (79, an epoch, for those",
        "that set filters to zero softly), and strengths that suit so short a run (`SHORT` in",
        "`design.py`): this compares methods where none had the epochs of its paper. Methods that",
        f"remove channels, `l1` and `l2` are finished after {SETTLED:.0%} of the run, and the rest",
        "trains what is left; all others act on the whole run. The standard error of an accuracy",
        "on 2,000 images is about 0.7 points, so of single seeds differences below two points",
        "mean little.",
        "",
        f"Finished so far: {len(done & asked)} of {len(asked)} runs; what is empty is to come.",
        "",
    ]


def _compression(rows: Rows) -> list[str]:
    mine = of(rows, kind="compression")
    lines = [
        "## Compression of the LeNets",
        "",
        "On FashionMNIST as above, and on MNIST: the first 1,000 training and 200 test images of",
        "each digit, as many as of FashionMNIST (`docs/zoo.md` says where the files are looked",
        "for). Of published figures, AutoPrune's abstract reports LeNet-5 with 310 times fewer",
        "weights and no loss; the others (Han et al. 2015 on both LeNets, AutoPrune on",
        "LeNet-300-100) were not confirmed from their sources and are not quoted. The zoo's",
        "LeNet-5 has 61,470 prunable weights, so 310 times fewer are 198: this shows what a",
        f"short run leaves at that ratio. `{HAN}` is the chain of arXiv:1506.02626: the",
        f"dense training, then {ROUNDS} rounds of pruning (one quality for all layers, times the",
        f"standard deviation of each) and {RETRAINED} epochs of retraining at a tenth of the rate.",
        "The rounds come on top of the dense training, so it sees 2.7 and 3.5 times the epochs of",
        "the other two. *Loss* is dense less compressed, in points. One seed.",
        "",
        "| data | network | method | "
        + " | ".join(f"{k}x" for k in COMPRESSION) + " | dense | loss |",
        "|---|---|---|" + "---|" * (len(COMPRESSION) + 2),
    ]  # fmt: skip
    for data in (MNIST, FASHION):
        here = [r for r in mine if r.get("data", FASHION) == data]
        for network in ("lenet300", "lenet5"):
            whole = of(here, network=network, method=DENSE)
            if data == FASHION and network == "lenet300":
                whole = of(rows, kind="weights", method=DENSE, seed=0)
            dense = whole[0]["accuracy"] if whole else None
            for method in (HAN, "autoprune", "gradual_magnitude"):
                known = of(here, network=network, method=method)
                found = {r["setting"]: r["accuracy"] for r in known}
                left = [found.get(f"{k}x") for k in COMPRESSION]
                lost = [f"{100 * (dense - a):.1f}" if a and dense else "" for a in left]
                said = " | ".join(f"{a:.1%}" if a else "" for a in left)
                lines.append(
                    f"| {data} | {network} | `{method}` | {said} | "
                    f"{f'{dense:.1%}' if dense else ''} | {', '.join(lost)} |"
                )
    return [*lines, *_published(mine), ""]


def _published(rows: Rows) -> list[str]:
    """AutoPrune's figure beside ours."""
    key = {"network": "lenet5", "data": MNIST, "setting": "310x"}
    dense = of(rows, network="lenet5", data=MNIST, method=DENSE)
    ours = of(rows, method="autoprune", **key)
    if not (dense and ours):
        return []
    lost = 100 * (dense[0]["accuracy"] - ours[0]["accuracy"])
    han = of(rows, method=HAN, **key)
    beside = (
        f" and Han's chain {100 * (dense[0]['accuracy'] - han[0]['accuracy']):.1f}" if han else ""
    )
    return [
        "",
        "LeNet-5 on MNIST at 310 times: the paper's abstract says no loss, here `autoprune` loses",
        f"{lost:.1f} points{beside}, after {EPOCHS['lenet5']} epochs on a sixth of the data: "
        + ("seen." if lost <= 0.5 else "**not seen**."),
    ]


def _weights(rows: Rows) -> list[str]:
    mine = [r for r in of(rows, kind="weights", control="", seed=0) if r["method"] != DENSE]
    dense = of(rows, kind="weights", method=DENSE, seed=0)
    lines = ["## Single weights: LeNet-300-100, one seed", ""]
    if dense:
        lines += [f"Dense: {dense[0]['accuracy']:.1%}.", ""]
    lines += [
        "| method | stage | " + " | ".join(f"at {a:.0%}" for a in TWO) + " | CPU time / dense |",
        "|---|---|" + "---|" * (len(TWO) + 1),
    ]
    best: dict[str, list[float | None]] = {}
    for r in mine:
        if r["setting"] != "own":
            best.setdefault(r["method"], [accuracies(rows, r["method"], a).get(0) for a in TWO])
    for method, found in sorted(best.items(), key=lambda item: -(item[1][-1] or 0)):
        some = of(mine, method=method)
        cells = [f"{a:.1%}" if a is not None else "" for a in found]
        lines.append(
            f"| `{method}` | {some[0]['stage']} | {' | '.join(cells)} | {_time(some, dense)} |"
        )
    own = [r for r in mine if r["setting"] == "own"]
    if own:
        lines += ["", "Methods whose sparsity follows from other settings:", ""]
        lines += ["| method | sparsity | accuracy | CPU time / dense |", "|---|---|---|---|"]
        lines += [
            f"| `{r['method']}` | {r['sparsity']:.1%} | {r['accuracy']:.1%} | {_time([r], dense)} |"
            for r in own
        ]
    votes = [r for r in mine if "vote" in r]
    if votes:
        said = ", ".join(
            f"at {r['setting']} {r['vote']:.1%} (last ticket alone {r['accuracy']:.1%})"
            for r in votes
        )
        better = all(r["vote"] > r["accuracy"] for r in votes)
        seen = "seen" if better else "**not seen**"
        lines += [
            "",
            f"The vote of the three tickets of one `free_tickets` run: {said}. That it beats its",
            f"members (arXiv:2106.14568) is {seen} on this seed.",
        ]
    return [*lines, ""]


def _time(rows: Rows, dense: Rows) -> str:
    """Processor time beside that of the dense run, on the machine of each row if it is known."""
    if not dense or not rows:
        return ""
    beside = [r["seconds"] / r.get("dense_seconds", dense[0]["seconds"]) for r in rows]
    return f"{mean(beside):.1f}"


def _curve(rows: Rows) -> list[str]:
    lines = [
        f"## The curve: LeNet-300-100, {len(SEEDS)} seeds",
        "",
        "Mean and standard deviation over seeds, of those that are finished.",
        "",
        "| method | " + " | ".join(f"{a:.0%}" for a in CURVE) + " |",
        "|---|" + "---|" * len(CURVE),
    ]
    for method in REPRESENTATIVE:
        cells = [spread(list(accuracies(rows, method, a).values())) for a in CURVE]
        if any(cells):
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
    dense = [r["accuracy"] for r in of(rows, kind="weights", method=DENSE)]
    return [*lines, f"| dense | {spread(dense)} |" + " |" * (len(CURVE) - 1), ""]


def _claims(rows: Rows) -> list[str]:
    lines = [
        "## What the papers say, and what is seen here",
        "",
        "Difference of accuracy on the same seeds, in points. *Seen*: on all seeds; *not seen*:",
        "the mean is zero or has the other sign; *unclear*: some seeds disagree. These are short",
        "runs of one small network; what is not seen here may well hold where the papers looked.",
        "That tickets beat new weights under the same masks, and many rounds one, is in",
        "[tickets.md](tickets.md).",
        "",
        "| claim | sparsity | difference | |",
        "|---|---|---|---|",
    ]
    for better, worse, amounts, text in CLAIMS:
        for amount in amounts:
            ours, theirs = accuracies(rows, better, amount), accuracies(rows, worse, amount)
            found = [100 * (ours[s] - theirs[s]) for s in ours if s in theirs]
            if found:
                said = f"{mean(found):+.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")
                lines.append(
                    f"| {text} (`{better}` over `{worse}`) | {amount:.0%} | {said} | "
                    f"{verdict(found)} |"
                )
    return [*lines, ""]


def _controls(rows: Rows) -> list[str]:
    lines = [
        "## Sanity checks",
        "",
        "The same masks with their places shuffled inside each layer, the same masks on weights",
        "drawn anew, and masks scored on half of the images. Where the first two columns agree,",
        "the method has found how many weights each layer needs, not which.",
        "",
        "| method | sparsity | as found | " + " | ".join(CONTROLS) + " |",
        "|---|---|" + "---|" * (len(CONTROLS) + 1),
    ]
    for method in CONTROLLED:
        for amount in TWO:
            cells = [
                spread(list(accuracies(rows, method, amount, c).values())) for c in ("", *CONTROLS)
            ]
            if any(cells[1:]):
                lines.append(f"| `{method}` | {amount:.0%} | {' | '.join(cells)} |")
    return [*lines, ""]


def _collapse(rows: Rows) -> list[str]:
    lines = [
        "## Where a whole layer is lost",
        "",
        "The lowest sparsity of a grid at which a method before training leaves a layer without a",
        "weight, when it may (`allow_empty=True`; otherwise each layer's best weight stays).",
        "`random` and `smart_ratio` keep a share of each layer and lose one by rounding only.",
        "That `synflow` loses none is a theorem (arXiv:2006.05467) where the flow is conserved; a",
        "test has it down to one weight a layer.",
        "",
        "| method | LeNet-300-100 | VGG with batch norm | which, there |",
        "|---|---|---|---|",
    ]
    mine = of(rows, kind="collapse")
    for method in dict.fromkeys(r["method"] for r in mine):
        both = [of(mine, method=method, network=n) for n in ("lenet300", "vgg_bn")]
        cells = [_lost(r[0]) if r else "" for r in both]
        which = ", ".join(f"`{n}`" for n in both[1][0]["emptied"][:3]) if both[1] else ""
        lines.append(f"| `{method}` | {cells[0]} | {cells[1]} | {which} |")
    return [*lines, ""]


def _lost(row: dict[str, Any]) -> str:
    if refused := row.get("refused_at"):
        return f"none; refuses {100 * refused:g} %, which its share of the classifier exceeds"
    return "never up to 99.98 %" if row["lost_at"] is None else f"{100 * row['lost_at']:g} %"


def _channels(rows: Rows) -> list[str]:
    mine = of(rows, kind="channels")
    dense = of(mine, method=DENSE)
    lines = [
        "## Whole channels: ResNet-8, removed for real",
        "",
        "One seed. The channels that a method has made zero are removed",
        "(`handle.finish(remove=True)`, proven equal to the masked network) and the MACs of what",
        "is left are measured. `dsa` and `dmcp` were asked for the MACs themselves; methods that",
        "take a fraction of the channels were asked for 30 % and 50 %, which leave about a half",
        "and a quarter of the MACs where every layer loses the same, and something else where",
        "layers compete; the measured factor says what.",
        "",
    ]
    if dense:
        lines += [f"Dense: {dense[0]['accuracy']:.1%}.", ""]
    lines += [
        "| method | asked | fewer MACs | accuracy | CPU time / dense |",
        "|---|---|---|---|---|",
    ]
    for setting in ("2x", "4x"):
        for r in sorted(of(mine, setting=setting), key=lambda r: -r["accuracy"]):
            lines.append(
                f"| `{r['method']}` | {setting} | {1 / r['macs']:.1f} times "
                f"| {r['accuracy']:.1%} | {_time([r], dense)} |"
            )
    tickets = [r for r in mine if "drawn" in r]
    if tickets:
        said = " and ".join(f"{r['drawn']:.0%} ({r['setting']})" for r in tickets)
        lines += [
            "",
            f"`early_bird` drew its ticket, or had to, after {said} of the run;",
            "the rest trains it.",
        ]
    return [*lines, ""]
