"""Unit classes: what can go, and what goes with it.

After recording, every axis expression is frozen into plain data over *classes*:

- an ``int`` n: n positions that stay;
- a ``str``: the positions of that class;
- ``("over", f, b)``: the positions of class f, chosen anew for every unit of class b (a head's own
  dimensions, a group's own channels), the same number everywhere;
- ``("prod", ..)``, ``("sum", ..)``, ``("take", axis, index)``: as in the algebra.

A class is one free leaf atom that some parameter or buffer has. Frozen axes need nothing but the
kept units of each class to be evaluated, so plans can be stored and applied without a trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Axis = Any  # int | str | tuple: JSON-able and recursive
Keep = Mapping[str, Tensor]


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer that a class runs along.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        axis: Which of its axes.
        unit: For every position of that axis the unit it belongs to, or -1; shape ``(axis size,)``.
        produces: True if the class is what the tensor makes (a layer's output rows, a norm's
        scale),
            False if it is what the tensor takes in (the next layer's columns).
        over: Where the class is chosen anew for every unit of another: the axis along which that
            other class lies (often the same axis), and for every position of it the other's unit.
    """

    tensor: str
    axis: int
    unit: Tensor
    produces: bool
    over: tuple[int, Tensor] | None = None


@dataclass(frozen=True)
class UnitClass:
    """A set of interchangeable removable units and everything that goes with each of them.

    Attributes:
        name: Unique; the module that makes it, with the kind where a module makes several.
        kind: channel, head, head_dim, kv_head, query, group, hidden, width, ...
        size: Number of units.
        members: Every parameter axis touched.
        statistical: Operators (``op in module``) for which removing differs from zeroing.
        locked: Why no unit can be removed, or None.
        over: Class for every unit of which other units may be chosen, the same number each, or
        None.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    statistical: tuple[str, ...] = ()
    locked: str | None = None
    over: str | None = None

    @property
    def exact(self) -> bool:
        """True if removing units equals zeroing them, whatever the input."""
        return not self.statistical

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules whose tensors the class touches, in order, without repetition."""
        return tuple(dict.fromkeys(module_of(m.tensor) for m in self.members))

    @cached_property
    def producers(self) -> tuple[str, ...]:
        """Modules that make the class."""
        return tuple(dict.fromkeys(module_of(m.tensor) for m in self.members if m.produces))


def module_of(tensor: str) -> str:
    """The module that owns a parameter; a parametrized weight belongs to the layer."""
    return (
        tensor.split(".parametrizations.")[0]
        if ".parametrizations." in tensor
        else (tensor.rpartition(".")[0])
    )


def axis_size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Number of positions of a frozen axis, given the number of units of each class."""
    match axis:
        case int():
            return axis
        case str():
            return int(sizes[axis])
        case ("over", name, _):
            return int(sizes[name])
        case ("prod", *parts):
            n = 1
            for p in parts:
                n *= axis_size(p, sizes)
            return n
        case ("sum", *parts):
            return sum(axis_size(p, sizes) for p in parts)
    raise ValueError(f"the size of {axis!r} depends on which units are kept, not on how many")


def axis_mask(axis: Axis, keep: Keep, sizes: Mapping[str, int]) -> Tensor:
    """Which positions of a frozen axis stay; bool, shape ``(axis size,)``.

    Args:
        axis: A frozen axis.
        keep: Class name -> bool mask over its units, or for a class chosen anew for every unit of
            another, a mask for each of those: shape ``(units of the other, units)``. Classes not
            named are kept whole.
        sizes: Class name -> number of units.

    Where the other class lies along another axis of the tensor, the first unit's choice stands for
    all: right for counting; ``plan.selection`` takes both axes together.
    """
    mask, _ = rows_mask(axis, keep, sizes)
    return mask if mask.dim() == 1 else mask[0]


def rows_mask(axis: Axis, keep: Keep, sizes: Mapping[str, int]) -> tuple[Tensor, str | None]:
    """Like ``axis_mask``, but with one row for each unit of a class that is not along this axis.

    Returns:
        The mask, ``(axis size,)`` or ``(units of the class, axis size)``, and that class's name.
    """
    match axis:
        case int():
            return torch.ones(axis, dtype=torch.bool), None
        case str():
            return keep[axis] if axis in keep else torch.ones(sizes[axis], dtype=torch.bool), None
        case ("over", name, base):
            mask, _ = rows_mask(name, keep, sizes)
            return mask, base if mask.dim() == 2 else None
        case ("prod", *parts):
            return _product_mask(parts, [rows_mask(p, keep, sizes) for p in parts])
        case ("sum", *parts):
            masks = [rows_mask(p, keep, sizes) for p in parts]
            base = next((b for _, b in masks if b), None)
            if base is None:
                return torch.cat([m for m, _ in masks]), None
            rows = next(len(m) for m, b in masks if b)
            return torch.cat([m.expand(rows, -1) for m, _ in masks], 1), base
        case ("take", inner, index):
            mask, base = rows_mask(inner, keep, sizes)
            return mask[..., torch.as_tensor(index)], base
    raise ValueError(f"not an axis: {axis!r}")


def _product_mask(
    parts: list[Axis], masks: list[tuple[Tensor, str | None]]
) -> tuple[Tensor, str | None]:
    """The mask over the nested positions; a factor's rows meet the factor that they are rows of."""
    base = next((b for _, b in masks if b), None)
    at = next((k for k, p in enumerate(parts) if p == base), None)
    grid = torch.ones((), dtype=torch.bool)
    for k, (mask, rows_of) in enumerate(masks):
        shape = [1] * (len(parts) + 1)  # in front: rows of a class that is not among the factors
        shape[k + 1] = mask.shape[-1]
        if rows_of:
            shape[0 if at is None else at + 1] = mask.shape[0]
            if at is not None and at > k:
                mask = mask.T
        grid = grid & mask.reshape(shape)
    return (grid.flatten(), None) if base is None or at is not None else (grid.flatten(1), base)


def axis_kept(axis: Axis, keep: Keep, sizes: Mapping[str, int]) -> int:
    """How many positions of a frozen axis stay."""
    match axis:
        case int():
            return axis
        case str():
            if axis not in keep:
                return sizes[axis]
            mask = keep[axis]
            return int((mask if mask.dim() == 1 else mask[0]).sum())
        case ("over", name, _):
            return axis_kept(name, keep, sizes)
        case ("prod", *parts):
            n = 1
            for p in parts:
                n *= axis_kept(p, keep, sizes)
            return n
        case ("sum", *parts):
            return sum(axis_kept(p, keep, sizes) for p in parts)
    return int(axis_mask(axis, keep, sizes).sum())


def classes_in(axis: Axis) -> Iterator[str]:
    """The classes of a frozen axis, in order, with repetitions."""
    match axis:
        case str():
            yield axis
        case ("over", name, _):
            yield name
        case ("prod" | "sum", *parts):
            for p in parts:
                yield from classes_in(p)
        case ("take", base, _):
            yield from classes_in(base)


def occurrences(axis: Axis, sizes: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """For every occurrence of a class: its name and each position's unit (-1: none)."""
    match axis:
        case str():
            yield axis, torch.arange(sizes[axis])
        case ("over", name, _):
            yield name, torch.arange(sizes[name])
        case ("sum", *parts):
            lengths = [_length(p, sizes) for p in parts]
            start = 0
            for part, n in zip(parts, lengths, strict=True):
                for name, unit in occurrences(part, sizes):
                    full = torch.full((sum(lengths),), -1)
                    full[start : start + n] = unit
                    yield name, full
                start += n
        case ("prod", *parts):
            lengths = [_length(p, sizes) for p in parts]
            for k, part in enumerate(parts):
                before = int(torch.tensor(lengths[:k]).prod()) if k else 1
                after = int(torch.tensor(lengths[k + 1 :]).prod()) if lengths[k + 1 :] else 1
                for name, unit in occurrences(part, sizes):
                    yield name, unit.repeat_interleave(after).repeat(before)
        case ("take", base, index):
            for name, unit in occurrences(base, sizes):
                yield name, unit[torch.as_tensor(index)]


def _length(axis: Axis, sizes: Mapping[str, int]) -> int:
    match axis:
        case ("take", _, index):
            return len(index)
        case ("sum", *parts):
            return sum(_length(p, sizes) for p in parts)
        case ("prod", *parts):
            n = 1
            for p in parts:
                n *= _length(p, sizes)
            return n
    return axis_size(axis, sizes)


def show_axis(axis: Axis) -> str:
    """A frozen axis as a person writes it: ``head*64``, ``a+b``."""
    match axis:
        case ("prod", *parts):
            return "*".join(f"({s})" if "+" in (s := show_axis(p)) else s for p in parts)
        case ("sum", *parts):
            return " + ".join(show_axis(p) for p in parts)
        case ("over", name, _):
            return str(name)
        case ("take", base, _):
            return f"reordered({show_axis(base)})"
    return str(axis)
