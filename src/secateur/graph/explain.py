"""Which units go together with those of a layer, and through which operators."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from secateur.errors import ConfigError
from secateur.graph.classes import UnitClass, module_of
from secateur.graph.flow import Event, Flow
from secateur.graph.repeats import listing, without_numbers
from secateur.graph.show import reasons, touched

if TYPE_CHECKING:
    from secateur.graph.graph import Graph

_LONGEST = 12  # lines of one list


def explain(graph: Graph, name: str) -> str:
    """Tell which units go together with those of a layer, and through which operators.

    Args:
        graph: The graph.
        name: Qualified name of a module, a parameter, a buffer or a class; empty: the whole model.

    Raises:
        ConfigError: Nothing has that name; the message offers the nearest ones.
    """
    if not name:
        return str(graph)  # of the whole model
    tensors = _tensors(graph, name)
    if tensors:
        return _explain_tensors(graph, name, tensors)
    if name in graph.classes:
        return "\n".join(_explain_class(graph, graph.classes[name]))
    if name in dict(graph.model.named_modules()):
        return f"{name} has no parameters or buffers: it only passes on what it is given."
    known = [n for n, _ in graph.model.named_modules() if n]
    known += [n for n, _ in graph.model.named_parameters(remove_duplicate=False)]
    known = list(dict.fromkeys([*known, *graph.free]))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "print(graph) lists them."
    raise ConfigError(f"the model has no module, parameter or class named {name!r}; {hint}")


def _tensors(graph: Graph, name: str) -> list[str]:
    """The traced names of the parameters and buffers of a module, or of the one so named."""
    shown = {id(t): n for n, t in _named(graph.model, remove_duplicate=False) if n in graph.axes}
    own = [
        shown[id(t)]
        for n, t in _named(graph.model, remove_duplicate=False)
        if id(t) in shown and (n == name or module_of(n) == name or n.startswith(f"{name}."))
    ]
    return list(dict.fromkeys(own))


def _named(model: nn.Module, *, remove_duplicate: bool) -> Iterable[tuple[str, object]]:
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    yield from model.named_buffers(remove_duplicate=remove_duplicate)


def _explain_tensors(graph: Graph, name: str, tensors: list[str]) -> str:
    here = set(tensors)
    makes: list[UnitClass] = []
    takes: list[UnitClass] = []
    stays: dict[str, list[str]] = {}
    for c in graph.classes.values():
        members = [m for m in c.members if m.tensor in here]
        if not members:
            continue
        if c.locked is not None:
            stays.setdefault(c.locked, []).extend(f"{m.tensor} (axis {m.axis})" for m in members)
        else:
            (makes if any(m.produces for m in members) else takes).append(c)
    lines = [_heading(graph, name, tensors)]
    if len(makes) > 3:
        lines += ["", "makes"] + [f"  {_in_words(c)}" for c in makes]
    else:
        for c in makes:
            lines += ["", f"makes {_in_words(c)}", *_explain_class(graph, c)[1:]]
    if takes:
        lines += ["", "takes in", *(f"  {_in_words(c)}" for c in takes)]
    if stays:
        lines += ["", "what stays"]
        lines += [f"  {listing(where)}: {why}" for why, where in stays.items()]
    if takes or len(makes) > 3:
        lines += ["", "graph.explain(<class>) tells more about each."]
    return "\n".join(lines)


def _heading(graph: Graph, name: str, tensors: list[str]) -> str:
    modules = dict(graph.model.named_modules())
    if name not in modules:
        return f"{name}  {_shape(graph, tensors[0])}"
    own = [t for t in tensors if module_of(t) == name]
    shapes = ", ".join(f"{t.rpartition('.')[2]} {_shape(graph, t)}" for t in own[:6])
    return f"{name}  {type(modules[name]).__name__}{', ' if shapes else ''}{shapes}"


def _shape(graph: Graph, tensor: str) -> str:
    return "×".join(map(str, graph.shapes[tensor])) or "scalar"


def _in_words(c: UnitClass) -> str:
    exact = "exact" if c.exact else f"statistical ({', '.join(reasons(c))})"
    over = f", others may be chosen for every unit of {c.over}" if c.over else ""
    return f"{c.name}: {c.size:,} units of kind {c.kind}, removal {exact}{over}"


def _explain_class(graph: Graph, c: UnitClass) -> list[str]:
    if c.locked is not None:
        where = [f"{m.tensor} (axis {m.axis})" for m in c.members]
        return [f"{c.name}: {c.size:,} positions of {listing(where)}", f"  stay: {c.locked}"]
    lines = [_in_words(c), f"  one unit is about {touched(graph, c) / c.size:,.0f} parameters:"]
    lines += [f"    {line}" for line in _slices(graph, c)]
    lines += ["  its parts go together because of"]
    flow = Flow(graph)
    events = list(flow.events(c.name))
    lines += [f"    {line}" for line in _because(flow, events)]
    passed = dict.fromkeys(e.operator for e in events if e.how == "passes")
    if passed:
        lines += [f"  and passes unchanged in number through {', '.join(passed)}"]
    if c.statistical:
        lines += [
            "  removing differs from zeroing, since the result depends on how many there are, in",
            *(f"    {why}" for why in _short(_alike(c.statistical))),
        ]
    return lines


def _slices(graph: Graph, c: UnitClass) -> list[str]:
    """Which part of which tensor one unit is."""
    positions: dict[tuple[bool, int, str], int] = {}
    for m in c.members:
        key = (m.produces, m.axis, m.tensor)
        positions[key] = positions.get(key, 0) + int((m.unit >= 0).sum()) // c.size
    groups: dict[tuple[bool, int, int], list[str]] = {}
    for (produces, axis, tensor), n in positions.items():
        groups.setdefault((produces, axis, n), []).append(tensor)
    lines = []
    for (produces, axis, n), tensors in sorted(groups.items(), key=lambda g: not g[0][0]):
        each = "" if n == 1 else f", {n} positions each"
        lines.append(
            f"{'makes' if produces else 'takes'}  axis {axis} of {listing(tensors, 5)}{each}"
        )
    return lines


def _because(flow: Flow, events: list[Event]) -> list[str]:
    """One line for each operator that ties parts together; blocks that repeat are told once."""
    sentences = [_sentence(flow, e) for e in events if e.how != "passes"]
    return _short(_alike(s for s in sentences if s))


def _sentence(flow: Flow, e: Event) -> str:
    where = e.module or "the model"
    own = ", ".join(t.rpartition(".")[2] if module_of(t) == e.module else t for t in e.tensors)
    match e.how:
        case "makes":
            return f"{where}: {e.operator} makes them with {own}" if own else ""
        case "shares":
            return f"{where}: {e.operator} gives each its own entry of {own}"
        case "joins":
            sides = dict.fromkeys([*map(flow.origin, e.values), *e.tensors])
            return f"{where}: {e.operator} joins {' and '.join(sides)}" if len(sides) > 1 else ""
        case _:
            return f"{where}: {e.operator} takes them in" + (f" with {own}" if own else "")


def _alike(sentences: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for s in sentences:
        groups.setdefault(without_numbers(s), []).append(s)
    result = []
    for group in groups.values():
        more = len(dict.fromkeys(group)) - 1
        result.append(group[0] + (f"  (and {more} more alike)" if more else ""))
    return result


def _short(lines: list[str]) -> list[str]:
    more = len(lines) - _LONGEST
    return lines if more <= 1 else [*lines[:_LONGEST], f"... {more} more"]
