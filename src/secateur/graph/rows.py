"""A graph as a list of rows, one a layer in order of execution: what a picture of it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from secateur.graph.classes import Axis, axis_size, classes_in, module_of
from secateur.graph.flow import Flow, short_name
from secateur.graph.repeats import fold, without_numbers

if TYPE_CHECKING:
    from secateur.graph.graph import Graph

_ENOUGH, _MANY = 70, 200  # rows beyond which repeated blocks, then similar ones, are drawn once


@dataclass(frozen=True)
class Row:
    """One layer, or the operators of one module that join classes, or blocks drawn only once.

    Attributes:
        name: Qualified name.
        what: What it is, in the words of the field.
        kind: layer, thin (only one entry a unit: norms, biases), join or repeat.
        takes: Frozen axis that it sums over, if any.
        makes: Frozen axis that it makes, if any.
        touches: Class -> how it is touched: makes, shares, takes or joins.
    """

    name: str
    what: str
    kind: str
    takes: Axis | None
    makes: Axis | None
    touches: dict[str, str]

    def sign(self, inside: str, sizes: dict[str, int], *, loose: bool) -> object:
        """What makes two rows alike, whatever the numbers in their names."""
        name = without_numbers(self.name[len(inside) :])
        if loose:
            return name, self.what.split()[0], self.kind
        widths = [None if a is None else _length(a, sizes) for a in (self.takes, self.makes)]
        return name, self.what, self.kind, tuple(widths), tuple(self.touches.values())


def rows(graph: Graph) -> list[Row]:
    """The rows of a graph; where there are many, repeated blocks stand once."""
    found = [*_rows(graph)]
    for loose, limit in ((False, _ENOUGH), (True, _MANY)):
        if len(found) > limit:
            for prefix in _prefixes(found):
                found = _collapse(found, prefix, graph.sizes, loose=loose)
    return found


def _rows(graph: Graph) -> Iterator[Row]:
    flow = Flow(graph)
    owned: dict[str, list[str]] = {}
    for name in graph.axes:
        owned.setdefault(module_of(name) or name, []).append(name)
    seen: set[str] = set()
    join: Row | None = None
    for i, op in enumerate(graph.ops):
        if i in flow.parameters:
            continue
        names = [n for s in op.sources for n in flow.names(s)]
        owners = [o for o in dict.fromkeys(module_of(n) or n for n in names) if o not in seen]
        joined = _joined(graph, flow, i)
        if join is not None and (owners or (joined and join.name != op.module)):
            yield join
            join = None
        for owner in owners:
            seen.add(owner)
            yield _layer(graph, owner, owned[owner])
        if joined:
            sign = _SIGNS.get(short_name(op.name), short_name(op.name))
            if join is None:
                join = Row(op.module, sign, "join", None, None, {})
            words = dict.fromkeys([*join.what.split(", "), sign])
            join = replace(join, what=", ".join(words), touches=join.touches | joined)
    if join is not None:
        yield join


_SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "cat": "concatenate"}


def _joined(graph: Graph, flow: Flow, i: int) -> dict[str, str]:
    """The classes that an operator ties or lays side by side, if it meets several values."""
    op = graph.ops[i]
    values = [
        {c for axis in axes for c in classes_in(axis)}
        for source, axes in zip(op.sources, op.inputs, strict=True)
        if not flow.names(source)
    ]
    several = [v for v in values if v]
    if len(several) < 2:
        return {}
    return dict.fromkeys(sorted(set.union(*several)), "joins")


def _layer(graph: Graph, owner: str, tensors: list[str]) -> Row:
    touches: dict[str, str] = {}
    axes_of: dict[tuple[str, int], bool] = {}
    deep = {t for t in tensors if sum(n > 1 for n in graph.shapes[t]) > 1}
    for c in graph.classes.values():
        for m in c.members:
            if m.tensor in tensors:
                looked_up = (c.locked or "").startswith("vocabulary")
                axes_of[m.tensor, m.axis] = m.produces and not looked_up
                if c.locked is None:
                    how = "takes" if not m.produces else "makes" if m.tensor in deep else "shares"
                    if touches.get(c.name) != "makes":
                        touches[c.name] = how
    main = max(deep or tensors, key=lambda t: (t in deep, _numel(graph.shapes[t])))
    takes = makes = None
    # What is free comes first, then the widest: kernels and vocabularies are not what flows.
    for i in sorted(range(len(graph.axes[main])), key=lambda i: _rank(graph.axes[main][i])):
        if axes_of.get((main, i), False) and makes is None:
            makes = graph.axes[main][i]
        elif not axes_of.get((main, i), True) and takes is None:
            takes = graph.axes[main][i]
    return Row(
        owner,
        _describe(graph, owner, main, tensors),
        "layer" if deep else "thin",
        takes,
        makes,
        touches,
    )


def _rank(axis: Axis) -> tuple[bool, int]:
    return isinstance(axis, int), -axis if isinstance(axis, int) else 0


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _describe(graph: Graph, owner: str, main: str, tensors: list[str]) -> str:
    module = dict(graph.model.named_modules()).get(owner)
    if module is None:
        return "parameter"
    if any(True for _ in module.children()):
        return ", ".join(t.rpartition(".")[2] for t in tensors)
    words = type(module).__name__
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, tuple) and len(graph.shapes[main]) > 2:
        words += " " + "×".join(map(str, kernel))
    if isinstance(groups := getattr(module, "groups", 1), int) and groups > 1:
        depthwise = graph.shapes[main][1:2] == (1,)
        words += " depthwise" if depthwise else f" in {groups} groups"
    return words


def _length(axis: Axis, sizes: dict[str, int]) -> int:
    match axis:
        case ("take", _, index):
            return len(index)
        case ("sum", *parts):
            return sum(_length(p, sizes) for p in parts)
        case ("prod", *parts):
            return _numel(tuple(_length(p, sizes) for p in parts))
    return axis_size(axis, sizes)


def bands(axis: Axis, sizes: dict[str, int]) -> list[tuple[int, tuple[str, ...]]]:
    """An axis as neighbouring pieces: how long each is and which classes run along it."""
    match axis:
        case ("sum", *parts):
            return [band for p in parts for band in bands(p, sizes)]
        case ("take", base, index):
            return [(len(index), tuple(dict.fromkeys(classes_in(base))))]
    return [(_length(axis, sizes), tuple(dict.fromkeys(classes_in(axis))))]


def _prefixes(found: list[Row]) -> list[str]:
    """What stands before a number in the rows' names, outermost first."""
    prefixes = {
        row.name[: m.start()] for row in found for m in re.finditer(r"\d+(?=\.|$)", row.name)
    }
    return sorted(prefixes, key=len)


def _collapse(found: list[Row], prefix: str, sizes: dict[str, int], *, loose: bool) -> list[Row]:
    """Draw the first of three or more alike neighbours ``prefix0, prefix1, ..``, count the rest."""
    blocks: list[tuple[str | None, list[Row]]] = []
    for row in found:
        m = re.match(r"\d+(?=\.|$)", row.name[len(prefix) :])
        number = m.group() if m and row.name.startswith(prefix) and row.kind != "repeat" else None
        if number is not None and blocks and blocks[-1][0] == number:
            blocks[-1][1].append(row)
        else:
            blocks.append((number, [row]))
    result: list[Row] = []
    start = 0
    while start < len(blocks):
        number, block = blocks[start]
        end = start + 1
        if number is not None:
            first = _signature(block, prefix + number, sizes, loose=loose)
            while end < len(blocks) and (other := blocks[end][0]) is not None:
                if _signature(blocks[end][1], prefix + other, sizes, loose=loose) != first:
                    break
                end += 1
        result += block
        if end - start > 2:
            hidden = blocks[start + 1 : end]
            touches = {c: "shares" for _, rest in hidden for row in rest for c in row.touches}
            name = ", ".join(fold(f"{prefix}{n}" for n, _ in hidden))
            like = "similar" if loose else "the same"
            result.append(
                Row(name, f"{like}, {len(hidden)} times more", "repeat", None, None, touches)
            )
            start = end
        else:
            start += 1
    return result


def _signature(block: list[Row], inside: str, sizes: dict[str, int], *, loose: bool) -> object:
    return [row.sign(inside, sizes, loose=loose) for row in block]
