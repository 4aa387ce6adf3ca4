"""A graph as text: its classes, what is locked and why."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from secateur.graph.classes import UnitClass, module_of
from secateur.graph.repeats import fold, listing, shared, without_numbers

if TYPE_CHECKING:
    from secateur.graph.graph import Graph


def table(graph: Graph, width: int | None = None) -> str:
    """The classes of a graph as a table, with what is locked and why below it.

    Classes that repeat from block to block stand in one row, ``blocks.{0..11}.mlp.fc1``.

    Args:
        graph: The graph.
        width: Columns of the text; default: those of the terminal, at least 100.
    """
    columns = width or min(max(shutil.get_terminal_size((120, 40)).columns, 100), 180)
    console = Console(file=io.StringIO(), width=columns, color_system=None, highlight=False)
    console.print(Text(totals(graph)))
    if graph.free:
        console.print(_classes(graph), soft_wrap=False)
    locked = _locked(graph)
    if locked.row_count:
        console.print(Text("What stays, and why"))
        console.print(locked)
    for note in notes(graph):
        console.print(Text(note))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def totals(graph: Graph) -> str:
    """The sentence that sums up what can be pruned."""
    parameters = sum(p.numel() for p in graph.model.parameters())
    units = sum(c.size for c in graph.free.values())
    return (
        f"{type(graph.model).__name__}: {_count(len(graph.free), 'class')} of units that can be "
        f"removed, {_count(units, 'unit')}; {graph.prunable_share:.2%} of its {parameters:,} "
        "parameters lie along at least one of them."
    )


def notes(graph: Graph) -> list[str]:
    """What the reader should know beyond the table."""
    result = []
    if graph.unknown:
        named = ", ".join(f"{op} ({n}×)" for op, n in graph.unknown.items())
        result.append(
            f"No rule for {named}: the axes that meet there are locked. secateur.graph.rule "
            "registers one."
        )
    if left_out := did_not_run(graph):
        result.append(left_out)
    if graph.on_data:
        result.append("Its control flow reads data: traced on the example's own values.")
    return result


def did_not_run(graph: Graph) -> str:
    """What did not run, and what that means for a plan; empty if everything ran."""
    parts = []
    if graph.idle:
        parts.append(
            f"{_some(graph.idle)} did not run in this forward: they stay whole, and nothing is "
            "known or proven of a forward that runs them after what feeds them was pruned. Trace "
            "with inputs that run them, or leave what feeds them whole with ignore=[...]."
        )
    for how in dict.fromkeys(graph.aside.values()):
        names = [n for n, other in graph.aside.items() if other == how]
        runs = "runs" if len(names) == 1 else "run"
        it = "it is" if len(names) == 1 else "they are"
        parts.append(
            f"{_some(names)} {runs} only {how}, so {it} pruned along, but not part of the proof."
            if how == "in training"
            else f"{_some(names)} did not run in this forward: {it} pruned {how}, but not part of "
            "the proof."
        )
    return " ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def alike(classes: Iterable[UnitClass]) -> list[list[UnitClass]]:
    """Classes in groups that differ only in the numbers of their names."""
    groups: dict[object, list[UnitClass]] = {}
    for c in classes:
        members = frozenset((without_numbers(m.tensor), m.axis, m.produces) for m in c.members)
        reasons = frozenset(map(without_numbers, c.statistical))
        over = without_numbers(c.over or "")
        key = (without_numbers(c.name), c.kind, c.size, over, members, reasons, kind_of(c))
        groups.setdefault(key, []).append(c)
    return list(groups.values())


def kind_of(c: UnitClass) -> str:
    """Why a class is locked, without the place."""
    return (c.locked or "").split(" in ")[0]


def reasons(c: UnitClass) -> list[str]:
    """The operators that make a class statistical, without their places."""
    return list(dict.fromkeys(why.split(" in ")[0] for why in c.statistical))


def touched(graph: Graph, c: UnitClass) -> float:
    """How many parameter elements lie along a class."""
    parameters = {n for n, _ in graph.model.named_parameters()}
    along: dict[str, dict[int, torch.Tensor]] = {}
    for m in c.members:
        if m.tensor in parameters:
            axes = along.setdefault(m.tensor, {})
            axes[m.axis] = axes.get(m.axis, torch.zeros_like(m.unit, dtype=torch.bool)) | (
                m.unit >= 0
            )
    total = 0.0
    for name, axes in along.items():
        left = 1.0
        for covered in axes.values():
            left *= 1 - covered.float().mean().item()
        total += torch.Size(graph.shapes[name]).numel() * (1 - left)
    return total


def _classes(graph: Graph) -> Table:
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    result.add_column("class, and what makes it → takes it in", overflow="fold", ratio=1)
    result.add_column("kind", no_wrap=True)
    result.add_column("units", justify="right", no_wrap=True)
    result.add_column("parameters", justify="right", no_wrap=True)
    result.add_column("removal is", max_width=24)
    for group in alike(graph.free.values()):
        first = group[0]
        makers = [m for c in group for m in owners(c, produces=True)]
        takers = [m for c in group for m in owners(c, produces=False) if m not in set(makers)]
        named = listing([c.name for c in group])
        inside = shared(fold([*(c.name for c in group), *makers, *takers]))
        inside = inside if len(inside) > 8 else ""
        ends = [listing(those, inside=inside) for those in (makers, takers) if those]
        result.add_row(
            Group(Text(named), Padding(Text(" → ".join(ends)), (0, 0, 0, 3))),
            first.kind + (f" per {graph.classes[first.over].kind}" if first.over else ""),
            f"{len(group)} × {first.size:,}" if len(group) > 1 else f"{first.size:,}",
            f"{sum(touched(graph, c) for c in group):,.0f}",
            "exact" if first.exact else f"statistical: {', '.join(reasons(first))}",
        )
    return result


def owners(c: UnitClass, *, produces: bool) -> list[str]:
    """Modules whose tensors make (or take in) a class; a bare parameter stands for itself."""
    return list(
        dict.fromkeys(module_of(m.tensor) or m.tensor for m in c.members if m.produces == produces)
    )


def _locked(graph: Graph) -> Table:
    result = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    result.add_column(no_wrap=True)
    result.add_column(justify="right", no_wrap=True)
    result.add_column(overflow="fold")
    groups: dict[str, list[UnitClass]] = {}
    for c in graph.classes.values():
        if c.locked is not None:
            groups.setdefault(kind_of(c), []).append(c)
    for why, group in groups.items():
        axes = {(m.tensor, m.axis) for c in group for m in c.members}
        where = [module_of(m.tensor) or m.tensor for c in group for m in c.members]
        result.add_row(why, _count(len(axes), "axis"), Text(listing(where, 6)))
    return result


def _count(n: int, noun: str) -> str:
    plural = {"axis": "axes", "class": "classes"}.get(noun, noun + "s")
    return f"{n:,} {noun if n == 1 else plural}"
