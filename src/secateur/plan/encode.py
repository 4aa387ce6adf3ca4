"""A plan as JSON text: one line a class, tensor and edit, so that two plans can be compared by eye.

What is read back is not trusted: every value is checked for its type, range and place before it is
used, and nothing is allocated for a size before that size is known to be one of the plan's tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from secateur.errors import StoreError
from secateur.files import read_text, write_text, write_together
from secateur.graph.classes import Axis
from secateur.plan.bases import BECOMES
from secateur.plan.edits import check_edit, is_module, is_numbers
from secateur.plan.gaps import Gap
from secateur.plan.plan import Edit, Plan

FORMAT = "secateur-plan"
VERSION = 2  # of 1 were plans whose edits of calls say only the number of the call
LARGEST_FILE = 1 << 28  # bytes
_LARGEST = 1 << 48  # elements of an axis
_MOST_UNITS = 1 << 28  # units of all pruned classes together: a byte each in memory
_DEEPEST = 24  # nesting of axes


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan alone; what its edits must be is solved for first, if that can be done."""
    if plan.edits is None and plan.graph is not None:
        plan = plan.prepared()
    write_together(path.parent, {path.name: write_text(encode(plan))})


def read_plan(path: Path) -> Plan:
    """Read a plan from its file or from a saved folder."""
    path = path / "plan.json" if path.is_dir() else path
    return decode(read_text(path, LARGEST_FILE), str(path))[0]


def encode(plan: Plan, **more: Any) -> str:
    """The plan (and whatever else its file says) as JSON text with a digest of its contents."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "exact": plan.exact,
        "made_by": plain(plan.made_by),
        "notes": [str(n) for n in plan.notes],
        "keep": {
            name: runs(mask) if mask.dim() == 1 else [runs(row) for row in mask]
            for name, mask in plan.keep.items()
        },
        "sizes": {name: int(n) for name, n in plan.sizes.items()},
        "shapes": {name: [int(n) for n in shape] for name, shape in plan.shapes.items()},
        "axes": {name: _lists(axes) for name, axes in plan.axes.items()},
        "edits": None if plan.edits is None else [_edit_data(e) for e in plan.edits],
        **({"dropped": [_gap_data(gap) for gap in plan.dropped]} if plan.dropped else {}),
        **more,
    }
    return _text({**data, "sha256": digest(data)})


def decode(text: str, where: str) -> tuple[Plan, dict[str, Any]]:
    """The plan in a JSON text, and the whole of the text as data.

    Raises:
        StoreError: The text is damaged, was changed, is of a newer version, or makes no sense.
    """
    data = parse(text, where)
    _check(where, isinstance(data, dict), "it holds no JSON object")
    if data.get("format") != FORMAT:
        raise StoreError(f"{where} is not a plan (format {FORMAT!r}): give a file that save wrote.")
    version = data.get("version")
    _check(where, _is_int(version) and version >= 1, "its version is not a number")
    if version > VERSION:
        raise StoreError(
            f"{where} has version {version}, this secateur reads up to {VERSION}: upgrade secateur."
        )
    given = data.pop("sha256", None)
    if given != digest(data):
        raise StoreError(
            f"{where} was changed after it was written (its sha256 does not match its contents): "
            "restore the file, or save the plan again."
        )
    return _plan(data, where), data


def parse(text: str, where: str) -> Any:
    """JSON as it is defined: no NaN, no key given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key is given twice")
        return result

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError, MemoryError) as error:
        raise StoreError(
            f"{where} is truncated or damaged ({_short(error)}): restore the file, or save again."
        ) from error


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, whatever their layout."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def runs(mask: Tensor) -> str:
    """The positions where a mask is True, as ``0-3,5,8-11``.

    Example:
        >>> runs(torch.tensor([True, True, False, True]))
        '0-1,3'
    """
    edges = torch.diff(mask.to(torch.int8), prepend=torch.zeros(1), append=torch.zeros(1))
    starts = (edges == 1).nonzero().flatten().tolist()
    stops = (edges == -1).nonzero().flatten().tolist()
    return ",".join(
        f"{a}-{b - 1}" if b - a > 1 else str(a) for a, b in zip(starts, stops, strict=True)
    )


def mask_of(text: Any, size: int, where: str) -> Tensor:
    """The mask that ``runs`` wrote; runs must ascend within the class."""
    _check(where, isinstance(text, str), "its kept units are not a text of runs")
    mask = torch.zeros(size, dtype=torch.bool)
    after = 0
    for run in text.split(","):
        first, dash, last = run.partition("-")
        digits = first.isascii() and first.isdigit() and len(first) < 16
        if dash:
            digits = digits and last.isascii() and last.isdigit() and len(last) < 16
        _check(where, digits, f"{_short(run)!r} is not a run of units")
        start, stop = int(first), int(last if dash else first) + 1
        _check(where, after <= start < stop <= size, f"run {run!r} is not within its {size} units")
        mask[start:stop] = True
        after = stop
    return mask


def _mask(kept: Any, size: int, where: str) -> Tensor:
    if not isinstance(kept, list):
        return mask_of(kept, size, where)
    mask = torch.stack([mask_of(row, size, where) for row in kept])
    _check(where, len(mask.sum(1).unique()) == 1, "its rows keep different numbers of units")
    return mask


def plain(value: Any) -> Any:
    """Anything as JSON data: what JSON has no word for becomes text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v) for v in (sorted(value, key=str) if isinstance(value, set) else value)]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item())
    return str(value)


def _text(data: Mapping[str, Any]) -> str:
    """JSON with one line an entry of every table."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)

    parts = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            rows = ",\n".join(f"  {line(str(k))}: {line(v)}" for k, v in value.items())
            parts.append(f" {line(key)}: {{\n{rows}\n }}")
        elif isinstance(value, list) and value:
            rows = ",\n".join(f"  {line(v)}" for v in value)
            parts.append(f" {line(key)}: [\n{rows}\n ]")
        else:
            parts.append(f" {line(key)}: {line(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def _edit_data(edit: Edit) -> dict[str, Any]:
    data: dict[str, Any] = {"module": edit.module, "name": edit.name}
    old = edit.old if is_numbers(edit.old) else None
    data |= {"value": _value_data(edit.value), "old": _value_data(old)}
    if edit.call is not None:
        data |= {"function": edit.function, "call": edit.call, "operands": _lists(edit.operands)}
        data |= {name: getattr(edit, name) for name in ("varies", "of") if getattr(edit, name)}
    check_edit(edit, "the plan")
    return data


def _value_data(value: Any) -> Any:
    """Tuples are told from lists, since an attribute may be either."""
    if isinstance(value, tuple):
        return {"tuple": [_value_data(v) for v in value]}
    if isinstance(value, list):
        return [_value_data(v) for v in value]
    if isinstance(value, dict):
        return {k: _value_data(v) for k, v in value.items()}
    return value


def _value(data: Any) -> Any:
    if isinstance(data, list):
        return [_value(v) for v in data]
    if isinstance(data, dict):
        if data.keys() == {"tuple"} and isinstance(data["tuple"], list):
            return tuple(_value(v) for v in data["tuple"])
        return {k: _value(v) for k, v in data.items()}
    return data


def _plan(data: dict[str, Any], where: str) -> Plan:
    _check(where, isinstance(data.get("exact"), bool), "'exact' is not true or false")
    notes = data.get("notes")
    _check(where, _all(notes, str), "'notes' is not a list of texts")
    tables = {k: data.get(k) for k in ("made_by", "keep", "sizes", "shapes", "axes")}
    for key, table in tables.items():
        _check(where, isinstance(table, dict), f"{key!r} is not a table")
    sizes: dict[str, int] = tables["sizes"]  # type: ignore[assignment]
    for name, n in sizes.items():
        _check(
            where, _is_int(n) and 0 < n <= _LARGEST, f"class {_short(name)!r} has no proper size"
        )
    shapes, axes = _tensors(tables["shapes"], tables["axes"], sizes, where)
    keep: dict[str, Any] = tables["keep"]  # type: ignore[assignment]
    used = dict(_classes(axes.values()))
    units = 0
    for name, kept in keep.items():
        here = f"{where}: class {_short(name)!r}"
        _check(here, name in used, "it is pruned, but no tensor has it")
        if isinstance(kept, list):  # chosen anew for every unit of another class
            base = used[name]
            _check(here, base in sizes and len(kept) == sizes[base], "it has too few or many rows")
        units += sizes[name] * (len(kept) if isinstance(kept, list) else 1)
        _check(here, units <= _MOST_UNITS, "the pruned classes are impossibly large")
    masks = {n: _mask(k, sizes[n], f"{where}: class {_short(n)!r}") for n, k in keep.items()}
    return Plan(
        keep=masks,
        sizes=sizes,
        shapes=shapes,
        axes=axes,
        exact=data["exact"],
        made_by=tables["made_by"],  # type: ignore[arg-type]
        edits=_edits(data.get("edits"), where),
        notes=tuple(notes),  # type: ignore[arg-type]
        dropped=_dropped(data.get("dropped", []), where),
    )


def _tensors(
    shapes: Any, axes: Any, sizes: Mapping[str, int], where: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[Axis, ...]]]:
    _check(where, shapes.keys() == axes.keys(), "'shapes' and 'axes' name different tensors")
    out_shapes, out_axes = {}, {}
    for name, shape in shapes.items():
        here = f"{where}: tensor {_short(name)!r}"
        good = isinstance(shape, list) and all(_is_int(n) and 0 <= n <= _LARGEST for n in shape)
        _check(here, good, "its shape is not a list of sizes")
        _check(here, isinstance(axes[name], list), "its axes are not a list")
        _check(here, len(axes[name]) == len(shape), "its axes are not as many as its dimensions")
        out_shapes[name] = tuple(shape)
        out_axes[name] = tuple(_axis(a, sizes, here, 0)[0] for a in axes[name])
        found = [_axis(a, sizes, here, 0)[1] for a in axes[name]]
        _check(here, found == shape, f"its axes have sizes {found}, its shape is {shape}")
    return out_shapes, out_axes


def _axis(data: Any, sizes: Mapping[str, int], where: str, depth: int) -> tuple[Axis, int]:
    """An axis and its size; nothing is allocated."""
    _check(where, depth < _DEEPEST, "an axis is nested too deeply")
    if _is_int(data):
        _check(where, 0 <= data <= _LARGEST, f"an axis has size {_short(data)}")
        return data, data
    if isinstance(data, str):
        _check(where, data in sizes, f"an axis is of the unknown class {_short(data)!r}")
        return data, sizes[data]
    _check(where, isinstance(data, list) and len(data) > 1, "an axis is neither size nor class")
    head, *rest = data
    if head == "take":
        _check(where, len(rest) == 2 and isinstance(rest[1], list), "a reordering has no positions")
        base, n = _axis(rest[0], sizes, where, depth + 1)
        inside = all(_is_int(i) and 0 <= i < n for i in rest[1])
        _check(where, inside, "a reordering names positions that are not there")
        return ("take", base, tuple(rest[1])), len(rest[1])
    if head == "over":
        known = len(rest) == 2 and all(isinstance(n, str) and n in sizes for n in rest)
        _check(where, known, "an axis is of classes that are not known")
        return ("over", *rest), sizes[rest[0]]
    _check(where, head in ("prod", "sum"), f"{_short(head)!r} is no kind of axis")
    parts = [_axis(p, sizes, where, depth + 1) for p in rest]
    lengths = [n for _, n in parts]
    size = math.prod(lengths) if head == "prod" else sum(lengths)
    _check(where, size <= _LARGEST, "an axis is impossibly large")
    return (head, *(p for p, _ in parts)), size


def _classes(axes: Iterable[tuple[Axis, ...]]) -> Iterator[tuple[str, str | None]]:
    """Every class that tensors have, with the class for every unit of which it is chosen anew."""
    stack = [a for several in axes for a in several]
    while stack:
        axis = stack.pop()
        if isinstance(axis, str):
            yield axis, None
        elif isinstance(axis, tuple) and axis[0] == "over":
            yield axis[1], axis[2]
        elif isinstance(axis, tuple):
            stack += axis[1:2] if axis[0] == "take" else axis[1:]


def _edits(data: Any, where: str) -> tuple[Edit, ...] | None:
    if data is None:
        return None
    _check(where, isinstance(data, list), "'edits' is not a list")
    edits = []
    for k, item in enumerate(data):
        here = f"{where}: edit {k}"
        _check(here, isinstance(item, dict), "it is not a table")
        known = {field.name for field in fields(Edit)}
        _check(here, {"module", "name", "value"} <= item.keys() <= known, "it has other fields")
        edit = Edit(**{n: _value(v) if n in ("value", "old") else v for n, v in item.items()})
        if isinstance(edit.operands, list):
            operands = (tuple(o) if isinstance(o, list) else o for o in edit.operands)
            edit = replace(edit, operands=tuple(operands))
        check_edit(edit, here)
        edits.append(edit)
    return tuple(edits)


def _dropped(data: Any, where: str) -> tuple[Gap, ...]:
    _check(where, _all(data, dict), "'dropped' is not a list of tables")
    for item in data:
        outputs = item.get("outputs")
        experts = item.get("experts", [])
        good = item.keys() - {"experts", "shortcut", "becomes"} == {"module", "outputs"}
        good = good and item.get("becomes", "") in ("", *BECOMES)
        good = good and is_module(item["module"])
        shortcut = item.get("shortcut", 0)
        good = good and _is_int(shortcut) and 0 <= shortcut < 1 << 20
        good = good and isinstance(experts, list) and len(set(map(str, experts))) == len(experts)
        good = good and all(_is_int(j) and 0 <= j < 1 << 16 for j in experts)
        good = good and (outputs is None or (_is_int(outputs) and 0 <= outputs < 64))
        _check(where, good, f"{_short(item)} names no block or part of one to drop")
    _check(where, len({item["module"] for item in data}) == len(data), "a block is dropped twice")
    return tuple(Gap(**{**item, "experts": tuple(item.get("experts", ()))}) for item in data)


def _gap_data(gap: Gap) -> dict[str, Any]:
    optional = ("experts", "shortcut", "becomes")
    return {name: value for name, value in asdict(gap).items() if name not in optional or value}


def _check(where: str, condition: bool, what: str) -> None:
    if not condition:
        raise StoreError(f"{where} cannot be used: {what}. Restore the file, or save again.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _short(value: Any) -> str:
    text = str(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."
