"""Reading and writing by index: the indexed axis stays (or is reordered, if the index is known)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.graph.axes import Axes, unify
from secateur.graph.rules import aten, rule
from secateur.graph.rules.pointwise import clean

if TYPE_CHECKING:
    from secateur.graph.capture import Op


@rule(aten.embedding)
def embedding(op: Op) -> Axes:
    """The vocabulary stays, the width passes."""
    weight = op.axes(op.arg("weight"))
    op.lock(weight[0], "vocabulary")
    op.zero = op.is_zero(op.arg("weight"))
    return [*op.axes(op.arg("indices")), weight[1]]


@rule(aten.index_select)
def index_select(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim") % max(len(axes), 1)
    op.lock(axes[dim], "indexed")
    axes[dim] = op.fixed(op.shape[dim], "indexed")
    return axes


@rule(aten.index, aten._unsafe_index)
def index(op: Op) -> Axes | None:
    """Indexed axes stay; the others pass, and the index's own axes take their place."""
    axes, indices = op.axes(op.arg("self")), list(op.arg("indices"))
    indices += [None] * (len(axes) - len(indices))
    used = [i for i, t in enumerate(indices) if t is not None]
    if any(indices[i].dtype == torch.bool for i in used):
        for e in axes:
            if e.size != 1:
                op.lock(e, "indexed by a mask")
        return None
    for i in used:
        op.lock(axes[i], "indexed")
    shape = torch.broadcast_shapes(*(indices[i].shape for i in used))
    middle = [op.fixed(n, "index") for n in shape]
    for i in used:
        for e in op.axes(indices[i]):
            op.lock(e, "index")
    rest = [e for i, e in enumerate(axes) if i not in used]
    contiguous = used == list(range(used[0], used[-1] + 1))
    at = used[0] if contiguous else 0
    return [*rest[:at], *middle, *rest[at:]]


@rule(aten.index_put, aten.index_put_, aten._unsafe_index_put, aten._index_put_impl_)
def index_put(op: Op) -> Axes | None:
    """Axes that are not indexed are the same in the target and in the values."""
    target, values = op.arg("self"), op.arg("values")
    axes, indices = op.axes(target), list(op.arg("indices"))
    indices += [None] * (len(axes) - len(indices))
    used = [i for i, t in enumerate(indices) if t is not None]
    span = sum(indices[i].dim() if indices[i].dtype == torch.bool else 1 for i in used)
    for i in used:
        wide = indices[i].dim() if indices[i].dtype == torch.bool else 1
        for e in axes[i : i + wide]:
            op.lock(e, "indexed")
        for e in op.axes(indices[i]):
            op.lock(e, "index")
    if used != list(range(len(used))):
        return None
    free = axes[span:]
    source = op.axes(values)
    for a, b in zip(free[::-1], source[::-1], strict=False):
        if a.size == b.size:
            unify(a, b)
    for e in source[: max(0, len(source) - len(free))]:
        op.lock(e, "indexed")
    op.zero = op.is_zero(target) and clean(op, values, free)
    return op.axes(target)


@rule(aten.gather)
def gather(op: Op) -> Axes:
    """Along ``dim`` positions are chosen by data; elsewhere index and source go together."""
    x, idx = op.arg("self"), op.arg("index")
    dim = op.arg("dim") % max(x.dim(), 1)
    result: Axes = []
    for i, (a, b) in enumerate(zip(op.axes(x), op.axes(idx), strict=True)):
        if i == dim:
            op.lock(a, "gathered")
            op.lock(b, "gathered")
            result.append(b)
        elif a.size == b.size:
            unify(a, b)
            result.append(a)
        else:
            op.lock(a, "gathered")
            op.lock(b, "gathered")
            result.append(b)
    return result


@rule(aten.scatter, aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_copy)
@rule(aten.index_fill, aten.index_reduce)
def scatter(op: Op) -> Axes:
    """Along ``dim`` data decide where to write; the other axes are the same in all operands."""
    x = op.arg("self")
    dim = op.arg("dim") % max(x.dim(), 1)
    op.lock(op.axes(x)[dim], "scattered")
    others = [t for n in ("src", "source", "index") if isinstance(t := op.given.get(n), Tensor)]
    for t in others:
        if t.dim() != x.dim():
            for e in op.axes(t):
                op.lock(e, "scattered")
            continue
        for i, (a, b) in enumerate(zip(op.axes(x), op.axes(t), strict=True)):
            if i == dim or a.size != b.size:
                op.lock(a, "scattered")
                op.lock(b, "scattered")
            else:
                unify(a, b)
    value = op.given.get("value")
    op.zero = all(op.is_zero(t) for t in [x, *others]) and (value is None or value == 0)
    return op.axes(x)


@rule(aten.roll)
def roll(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    dims = op.arg("dims") or range(len(axes))
    for d in dims:
        op.lock(axes[d], "roll")
    return axes


@rule(aten.nonzero, aten.masked_select, aten.bincount, aten.unique, aten._unique2, aten.histc)
@rule(aten.searchsorted, aten.bucketize, aten.multinomial)
def by_value(op: Op) -> Any:
    """What comes out depends on the values: nothing of it can be removed."""
    return None


@rule(aten.one_hot)
def one_hot(op: Op) -> Axes:
    return [*op.axes(op.arg("self")), op.fixed(op.shape[-1], "classes")]
