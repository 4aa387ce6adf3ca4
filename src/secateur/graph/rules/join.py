"""Putting axes one after another and taking them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.graph.axes import Axes, Expr, Take, concat, cut, locked, one, peel, resolve, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


@rule(aten.cat, aten.concat)
def cat(op: Op) -> Axes:
    """The axes along ``dim`` become one Sum; all others are the same axis."""
    tensors = [t for t in op.arg("tensors") if t.dim() > 1 or t.numel() > 0]
    if not tensors:
        return [op.fixed(0)]
    dim = op.arg("dim", 0) % tensors[0].dim()
    for t in tensors[1:]:
        for i, (a, b) in enumerate(zip(op.axes(tensors[0]), op.axes(t), strict=True)):
            if i != dim:
                unify(a, b)
    result = op.axes(tensors[0])
    result[dim] = concat(*(op.axes(t)[dim] for t in tensors))
    return result


@rule(aten.stack)
def stack(op: Op) -> Axes:
    """Same axes for all, and a new one that counts them."""
    first, *rest = op.arg("tensors")
    for t in rest:
        for a, b in zip(op.axes(first), op.axes(t), strict=True):
            unify(a, b)
    result = op.axes(first)
    dim = op.arg("dim", 0) % (first.dim() + 1)
    result.insert(dim, op.fixed(len(rest) + 1, "stack"))
    return result


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk)
@rule(aten.tensor_split, aten.unsafe_split_with_sizes)
def split(op: Op) -> list[Axes]:
    """The axis is cut where the pieces end."""
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim", 0) % len(axes)
    sizes = [o.shape[dim] for o in op.outs]
    parts = _cut_into(op, axes[dim], sizes)
    return [[part if i == dim else e for i, e in enumerate(axes)] for part in parts]


def _cut_into(op: Op, e: Expr, sizes: list[int]) -> Axes:
    parts: Axes = []
    rest = e
    for size in sizes[:-1]:
        halves = cut(rest, size)
        if halves is None:
            op.lock(e, "split inside a nested axis")
            return [op.fixed(n, "split inside a nested axis") for n in sizes]
        parts.append(halves[0])
        rest = halves[1]
    parts.append(rest)
    return [resolve(p) if p.size else op.fixed(0) for p in parts]


@rule(aten.unbind)
def unbind(op: Op) -> list[Axes]:
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim", 0) % len(axes)
    op.lock(axes[dim], "unbind")
    return [[e for i, e in enumerate(axes) if i != dim] for _ in op.outs]


@rule(aten.select)
def select(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim") % len(axes)
    op.lock(axes[dim], "select")
    return [e for i, e in enumerate(axes) if i != dim]


@rule(aten.slice, aten.narrow)
def slice_(op: Op) -> Axes:
    """A contiguous piece is cut out; with a step the axis is nested and its inner part locked."""
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim", 0) % len(axes)
    e, size = axes[dim], op.shape[dim]
    if size == e.size:
        return axes
    if size == 0:
        axes[dim] = op.fixed(0)
        return axes
    start = op.arg("start", 0)
    start = start + e.size if start < 0 else start
    step = op.arg("step", 1)
    axes[dim] = _piece(op, e, start, size) if step == 1 else _strided(op, e, start, size, step)
    return axes


def _piece(op: Op, e: Expr, start: int, size: int) -> Expr:
    left = cut(e, start)
    piece = cut(left[1], size) if left else None
    if piece is None:
        op.lock(e, "slice inside a nested axis")
        return op.fixed(size, "slice inside a nested axis")
    return piece[0] if size != 1 else one_of(op, piece[0])


def one_of(op: Op, e: Expr) -> Expr:
    """A piece of one position: that position must stay, since something reads it."""
    op.lock(e, "a single position is read")
    return one()


def _strided(op: Op, e: Expr, start: int, size: int, step: int) -> Expr:
    whole = size * step == e.size and start < step  # one position of every inner part
    split = peel(e, step) if whole else None
    if split is None:
        op.lock(e, "strided slice")
        return op.fixed(size, "strided slice")
    op.lock(split[1], "strided slice")
    return split[0]


@rule(aten.flip)
def flip(op: Op) -> Axes:
    """The same positions in reverse order: removing them on both sides is exact."""
    axes = op.axes(op.arg("self"))
    for d in op.arg("dims"):
        n = axes[d].size
        axes[d] = resolve(Take(axes[d], tuple(range(n - 1, -1, -1))))
    return axes


@rule(aten.slice_scatter, aten.select_scatter)
def scatter_into(op: Op) -> Any:
    return None


@rule(aten.constant_pad_nd)
def pad(op: Op) -> Axes:
    """Padding adds positions of its own at the ends; on a prunable axis they stay apart."""
    axes = op.axes(op.arg("self"))
    amounts, value = op.arg("pad"), op.arg("value", 0)
    for i in range(len(amounts) // 2):
        dim = len(axes) - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if before == after == 0:
            continue
        if before < 0 or after < 0:  # a shift takes from one end and adds at the other
            left = axes[dim].size + min(before, 0) + min(after, 0)
            whole, start = axes[dim], max(0, -before)
            axes[dim] = _piece(op, whole, start, left)
            first, last = cut(whole, start), cut(whole, start + left)
            for cut_off in (first and first[0], last and last[1]):
                if cut_off is not None:
                    op.lock(cut_off, "cut off by padding")
            before, after = max(before, 0), max(after, 0)
            ends = [op.fixed(n, "padding") for n in (before, after)]
            axes[dim] = concat(*(p for p in (ends[0], axes[dim], ends[1]) if p.size))
            continue
        others = [e for i, e in enumerate(axes) if i != dim]
        op.zero = op.zero and (value == 0 or all(locked(e) for e in others))
        parts = [_padding(op, before, value), axes[dim], _padding(op, after, value)]
        axes[dim] = concat(*(p for p in parts if p is not None and p.size))
    return axes


def _padding(op: Op, size: int, value: float) -> Expr | None:
    from secateur.graph.axes import Atom

    if size == 0:
        return None
    # Zeros are interchangeable: a later layer may drop some of them together with its inputs.
    return Atom(size) if value == 0 and size > 1 else op.fixed(size, "padding")
