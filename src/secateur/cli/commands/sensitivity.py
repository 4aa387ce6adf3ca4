"""Measure how much each class of units can lose: the metric with some of them masked."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from secateur.cli import config, flags, models
from secateur.cli.answer import Answer, started
from secateur.cli.arguments import asked, named
from secateur.errors import ConfigError

EXAMPLES = ("secateur sensitivity zoo:resnet8 --amounts 0.5 --batches 2",)
_AMOUNTS = "0.25,0.5,0.75,0.9"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, how it is judged, and how much to mask."""
    parser.add_argument("model", metavar="MODEL", help=models.FORMS)
    parser.add_argument(
        "--amounts",
        default=_AMOUNTS,
        metavar="A,B,...",
        help=f"fractions of a class to mask (default: {_AMOUNTS})",
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", help="judge on the first N test batches only"
    )
    flags.add(
        parser,
        "original weights inputs batch data batch_size loss evaluate metric criterion ignore "
        "kinds seed threads device dtype",
    )


def run(options: argparse.Namespace) -> Answer:
    """Mask, judge and undo, class by class."""
    import secateur as sec

    amounts = _amounts(options.amounts)
    chosen = config.make({**flags.given(options), "model": options.model})
    source, model, inputs = models.open_model(chosen)
    chosen = replace(chosen, data=chosen.data or source.data)
    found = asked(chosen, options.batches)
    if found.evaluate is None:
        raise ConfigError(
            "nothing to judge the model by: give --data FILE.py:FUNCTION (which returns a pair "
            "(train, test)) or --evaluate FILE.py:FUNCTION"
        )
    started(f"masking and judging {source.spec}, class by class", options)
    curves = sec.sensitivity(
        model,
        inputs,
        found.evaluate,
        amounts=amounts,
        criterion=named(chosen.criterion, "criterion") or "l2",
        data=found.train,
        loss=found.loss,
        ignore=chosen.ignore,
        kinds=chosen.kinds or None,
        seed=chosen.seed,
    )
    answer = {
        "model": source.spec,
        "metric": found.metric.name,
        "curves": [{"name": c.name, "points": [list(p) for p in c.points]} for c in curves],
    }
    return Answer(answer, _table(curves, found.metric, amounts))


def _amounts(text: str) -> list[float]:
    try:
        amounts = [float(part) for part in text.split(",")]
    except ValueError:
        amounts = []
    if not amounts or not all(0 < amount < 1 for amount in amounts):
        raise ConfigError(f"--amounts {text}: write fractions between 0 and 1, as 0.25,0.5")
    return amounts


def _table(curves: Any, metric: Any, amounts: list[float]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from secateur.report.units import metric_value

    table = Table(title=f"{metric.name}, most sensitive first", box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for amount in [0.0, *sorted(set(amounts))]:
        table.add_column(f"{amount:.0%} masked" if amount else "dense", justify="right")
    for curve in curves:
        cells = [metric_value(value, metric) for _, value in curve.points]
        table.add_row(Text(curve.name), *map(str, cells))
    return table
