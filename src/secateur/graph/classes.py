"""Unit classes: what can go, and what goes with it.

After recording, every axis expression is frozen into plain data over *classes*:

- an ``int`` n: n positions that stay;
- a ``str``: the positions of that class;
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
        produces: True if the class is what the tensor makes (a layer's output rows, a norm's scale),
            False if it is what the tensor takes in (the next layer's columns).
    """

    tensor: str
    axis: int
    unit: Tensor
    produces: bool


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
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    statistical: tuple[str, ...] = ()
    locked: str | None = None

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
    """The module that owns a parameter; a parametrized weight belongs to the layer, not the wrapper."""
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
        keep: Class name -> bool mask over its units; classes not named are kept whole.
        sizes: Class name -> number of units.
    """
    match axis:
        case int():
            return torch.ones(axis, dtype=torch.bool)
        case str():
            return keep[axis] if axis in keep else torch.ones(sizes[axis], dtype=torch.bool)
        case ("prod", first, *rest):
            mask = axis_mask(first, keep, sizes)
            for p in rest:
                mask = (mask[:, None] & axis_mask(p, keep, sizes)[None]).flatten()
            return mask
        case ("sum", *parts):
            return torch.cat([axis_mask(p, keep, sizes) for p in parts])
        case ("take", base, index):
            return axis_mask(base, keep, sizes)[torch.as_tensor(index)]
    raise ValueError(f"not an axis: {axis!r}")


def axis_kept(axis: Axis, keep: Keep, sizes: Mapping[str, int]) -> int:
    """How many positions of a frozen axis stay."""
    match axis:
        case int():
            return axis
        case str():
            return int(keep[axis].sum()) if axis in keep else sizes[axis]
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
        case ("prod" | "sum", *parts):
            for p in parts:
                yield from classes_in(p)
        case ("take", base, _):
            yield from classes_in(base)


def occurrences(axis: Axis, sizes: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """For every occurrence of a class: its name and each position's unit (-1: not of this class)."""
    match axis:
        case str():
            yield axis, torch.arange(sizes[axis])
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
        case ("take", base, _):
            return f"reordered({show_axis(base)})"
    return str(axis)
