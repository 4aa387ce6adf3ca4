"""The terminal report: all of it, at any width, and names stay names."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from secateur import report


def printed(record: report.Record, width: int, colour: bool = False) -> str:
    terminal = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    terminal.print(report.console(record))
    return terminal.file.getvalue()


def test_the_terminal_shows_what_the_page_shows(record):
    shown = " ".join(printed(record, 200).split())
    said = report.verdict(record)
    for expected in (said.headline, said.proof, record.title, record.notes[0], record.command):
        assert expected in shown
    batch = replace(record, inputs="float32[1, 3, 32, 32]")
    assert "those of one forward of float32[1, 3, 32, 32]" in " ".join(printed(batch, 200).split())
    assert "Pruned, not healed" in shown and "Energy follows from a model" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_longer_than_the_terminal(record, width):
    assert max(map(len, printed(record, width).splitlines())) <= width


def test_bars_show_what_each_layer_keeps():
    layers = (report.Layer("a", "channels", 24, 12), report.Layer("b", "channels", 12, 3))
    record = report.Record("t", "m", report.State(2), report.State(1), layers=layers)
    bars = re.findall("(█+)(░+)", printed(record, 100))
    assert [(len(kept), len(gone)) for kept, gone in bars] == [(12, 12), (6, 18)]


def test_entries_of_one_layer_are_explained_where_there_are_any(record):
    grouped = (report.Layer("stem", "channel", 4, 2), report.Layer("stem#2", "group", 6, 3))
    shown = " ".join(printed(replace(record, layers=grouped), 400).split())
    assert "its width is their product" in shown
    assert "their product" not in printed(record, 400)


def test_nasty_names_do_not_steer_the_terminal(hostile):
    shown = printed(hostile, 400)
    assert "[bold red]markup[/]" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)
    coloured = printed(hostile, 400, colour=True)
    assert "\x1b[2J" not in coloured and "\x1b]8;;" not in coloured
