"""Show the report of a run again, or several runs beside one another."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.answer import Answer
from secateur.errors import StoreError

if TYPE_CHECKING:
    from secateur.report import Point, Record

EXAMPLES = (
    "secateur report out",
    "secateur report out --html page.html --card card.md",
    "secateur report out unhealed",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and what to write."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a metrics.json")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write a page about the first run; with several, its figure of accuracy against "
        "speed-up shows all",
    )
    parser.add_argument("--card", metavar="FILE", help="write the first run's model card, Markdown")


def run(options: argparse.Namespace) -> Answer:
    """Read the records and show them; nothing is measured again."""
    from secateur import report
    from secateur.files import write_text, write_together

    records = {name: report.read(_metrics(Path(name))) for name in options.runs}
    first = records[options.runs[0]]
    if len(records) > 1:
        first = replace(first, pareto=_points(records))
    written = []
    if options.html:
        written.append(str(report.html(first, options.html)))
    if options.card:
        path = Path(options.card)
        write_together(path.parent, {path.name: write_text(report.card(first))})
        written.append(str(path))
    answer: dict[str, Any] = {
        "runs": {name: record.to_dict() for name, record in records.items()},
        "written": written,
    }
    shown = report.console(first) if len(records) == 1 else _side_by_side(records)
    return Answer(answer, shown)


def _metrics(path: Path) -> Path:
    if (path / "unfinished").is_dir() and not (path / "metrics.json").is_file():
        raise StoreError(
            f"{path} holds a run that was broken off: secateur prune --resume --out {path} goes "
            "on with it"
        )
    if path.is_dir():
        path = path / "metrics.json"
    if not path.is_file():
        raise StoreError(f"{path} does not exist: give the folder of a finished run")
    return path


def _points(records: dict[str, Record]) -> tuple[Point, ...]:
    from secateur.report import Point

    points = []
    for k, (name, record) in enumerate(records.items()):
        after = record.after
        if after.accuracy is not None and after.speedup is not None:
            gone = 1 - after.parameters / max(record.before.parameters, 1)
            points.append(Point(gone, after.accuracy, after.speedup.ratio, k == 0, name))
    return tuple(points)


def _side_by_side(records: dict[str, Record]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from secateur import report

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    table.add_column("what came of it", overflow="fold")
    for name, record in records.items():
        said = report.verdict(record)
        table.add_row(Text(name), Text(f"{said.headline}\n{said.proof}"))
    return table
