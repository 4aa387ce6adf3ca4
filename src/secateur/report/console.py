"""The report for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secateur.report.record import Record, as_record
from secateur.report.table import columns, footnotes, legend, rows
from secateur.report.units import plain, scalar
from secateur.report.verdict import verdict

_STYLES = {"good": "green", "mixed": "yellow", "bad": "red"}
_BAR = 24


def console(record: Record | Mapping[str, Any]) -> Group:
    """Make the report as a value that ``rich.print`` or a ``rich.console.Console`` prints.

    Names from outside are printed as they are: no markup or escape sequence in them takes effect.

    Example:
        >>> from rich.console import Console
        >>> from secateur.report import State, Record
        >>> record = Record("Half a net", "zoo:resnet20", State(200), State(100))
        >>> terminal = Console(width=60)
        >>> with terminal.capture() as shown:
        ...     terminal.print(console(record))
        >>> "2.0× fewer parameters" in shown.get()
        True
    """
    record = as_record(record)
    parts: list[RenderableType] = [_verdict(record), _measured(record)]
    if record.layers:
        parts.append(_widths(record))
    if record.locked:
        parts.append(_pairs("Left alone", {entry.name: entry.reason for entry in record.locked}))
    if record.notes:
        parts.append(Padding(Text("\n".join(f"– {plain(note)}" for note in record.notes)), (1, 1)))
    if record.dry:
        return Group(*parts)
    again = {name: scalar(value) for name, value in record.environment.items()}
    if record.data is not None:
        again["data"] = f"{record.data.description} {record.data.hash}".strip()
    if record.seed is not None:
        again["seed"] = str(record.seed)
    if record.command:
        again["command"] = record.command
    if again:
        parts.append(_pairs("Run it again", again))
    return Group(*parts)


def _verdict(record: Record) -> Panel:
    said = verdict(record)
    lines = Text(said.headline, style=f"bold {_STYLES[said.tone]}")
    lines.append(f"\n{said.proof}", style="not bold default")
    for warning in said.warnings:
        lines.append(f"\n! {warning}", style="not bold yellow")
    title = Text(f" {plain(record.title)} · {plain(record.model)} ")
    return Panel(lines, title=title, title_align="left", border_style=_STYLES[said.tone])


def _measured(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in (*columns(record), "Change"):
        table.add_column(name, justify="right")
    for row in rows(record):
        cells = [
            Text.assemble(cell.text, (f"\n{cell.detail}" if cell.detail else "", "dim"))
            for cell in row.cells
        ]
        table.add_row(Text(row.label), *cells, Text(row.change, style="bold"))
    table.caption = Text(" ".join(footnotes(record)), style="dim")
    table.caption_justify = "left"
    return table


def _widths(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Layer", overflow="fold")
    table.add_column("Before", justify="right")
    table.add_column("After", justify="right")
    table.add_column("Kept", no_wrap=True)
    for layer in record.layers:  # each bar is its own layer's width: a narrow layer shows as well
        kept = min(_BAR, round(_BAR * layer.after / max(layer.before, 1)))
        gone = _BAR - kept
        table.add_row(
            Text(plain(layer.name)),
            str(layer.before),
            str(layer.after),
            Text.assemble(("█" * kept, "green"), ("░" * gone, "dim")),
        )
    if legend(record):
        table.caption = Text(legend(record), style="dim")
        table.caption_justify = "left"
    return table


def _pairs(title: str, pairs: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=True)
    table.add_column(title, overflow="fold")
    table.add_column("", overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(plain(name)), Text(plain(value), style="dim"))
    return table
