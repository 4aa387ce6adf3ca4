"""Products that sum over a shared axis: matrix products and convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, Expr, locked, peel, prod, resolve, unify
from secateur.graph.rules import aten, rule
from secateur.graph.rules.pointwise import clean

if TYPE_CHECKING:
    from secateur.graph.capture import Op


def contract(op: Op, x: Tensor, y: Tensor, dim_x: int, dim_y: int) -> None:
    """Sum over ``x``'s axis ``dim_x`` times ``y``'s axis ``dim_y``.

    Exact to mask if either factor is zero at the removed positions.
    """
    a, b = op.axes(x)[dim_x], op.axes(y)[dim_y]
    unify(a, b)
    op.contracts(x, dim_x)
    op.contracts(y, dim_y)
    if not (op.is_zero(x) or op.is_zero(y)):
        op.statistical(resolve(a), f"{op.name} of values that masking does not make zero")


def roles(op: Op, x: Tensor, y: Tensor) -> None:
    """What a product for each of a batch says: over positions, or between them, it is attention.

    What goes in and out of it besides positions are the dims of a head.
    """
    ex, ey = op.axes(x), op.axes(y)
    for e in ex[:-2]:
        op.role(e, "batched")
    if all(locked(e) for e in ex[:-2]):
        return
    if locked(ex[-1]):
        op.role(ey[-1], "head_dim")
    elif locked(ex[-2]) and locked(ey[-1]):
        op.role(ex[-1], "head_dim")


def free_is_zero(op: Op, x: Tensor, free: Axes) -> bool:
    return op.is_zero(x) or all(locked(e) for e in free)


@rule(aten.mm, aten.bmm)
def matmul(op: Op) -> Axes:
    """(.., m, k) x (.., k, n): k unifies and ends; leading axes are shared."""
    x, y = op.arg("self"), op.arg("mat2")
    contract(op, x, y, -1, -2)
    ex, ey = op.axes(x), op.axes(y)
    for a, b in zip(ex[:-2], ey[:-2], strict=True):
        unify(a, b)
    roles(op, x, y)
    ex, ey = op.axes(x), op.axes(y)
    shared_zero = op.is_zero(x) or op.is_zero(y) or all(locked(e) for e in ex[:-2])
    op.zero = shared_zero and free_is_zero(op, x, [ex[-2]]) and free_is_zero(op, y, [ey[-1]])
    op.record.work = (*ex, ey[-1])
    return [*ex[:-2], ex[-2], ey[-1]]


@rule(aten.addmm, aten.baddbmm)
def addmm(op: Op) -> Axes:
    """bias + x y."""
    name = "mat" if op.name.startswith("addmm") else "batch"
    x, y = op.arg(name + "1"), op.arg(name + "2")
    contract(op, x, y, -1, -2)
    ex, ey = op.axes(x), op.axes(y)
    for a, b in zip(ex[:-2], ey[:-2], strict=True):
        unify(a, b)
    roles(op, x, y)
    ex, ey = op.axes(x), op.axes(y)
    result = [*ex[:-1], ey[-1]]
    bias = op.axes(op.arg("self"))
    for a, b in zip(bias[::-1], result[::-1], strict=False):
        if a.size == b.size:
            unify(a, b)
    product_is_zero = free_is_zero(op, x, ex[:-1]) and free_is_zero(op, y, [ey[-1]])
    op.zero = product_is_zero and clean(op, op.arg("self"), result)
    op.record.work = (*op.axes(x), op.axes(y)[-1])
    return result


@rule(aten.mv)
def mv(op: Op) -> Axes:
    contract(op, op.arg("self"), op.arg("vec"), -1, 0)
    op.record.work = tuple(op.axes(op.arg("self")))
    return op.axes(op.arg("self"))[:1]


@rule(aten.dot, aten.vdot)
def dot(op: Op) -> Axes:
    contract(op, op.arg("self"), op.arg("tensor", op.arg("other")), 0, 0)
    return []


@rule(aten.convolution, aten._convolution)
def convolution(op: Op) -> Any:
    r"""Channels contract; with G groups, in = Prod(G, Ci), out = Prod(G, Co).

    Depthwise is Ci = 1. A transposed convolution's weight is [Prod(G, Ci), Co, kernel].
    """
    x, w, bias = op.arg("input"), op.arg("weight"), op.given.get("bias")
    groups, transposed = op.arg("groups", 1), op.arg("transposed", False)
    spatial = w.dim() - 2
    batched = x.dim() == w.dim()
    channel = x.dim() - spatial - 1
    for e in op.axes(w)[2:]:
        op.lock(e, "kernel size")
    for e in op.axes(x)[channel + 1 :]:
        op.lock(e, "image size")
    if groups == 1:
        contract(op, x, w, channel, 0 if transposed else 1)
        out = op.axes(w)[1 if transposed else 0]
        inner: Expr = op.axes(w)[0 if transposed else 1]
    else:
        grouped = _groups(op, x, w, channel, groups, transposed=transposed)
        if grouped is None:
            return None
        out, inner = grouped
    if bias is not None:
        unify(out, op.axes(bias)[0])
    op.zero = op.is_zero(w) and (bias is None or op.is_zero(bias))
    shape = op.shape[-spatial:] if spatial else ()
    sizes = [op.fixed(n, "image size") for n in shape]
    lead = op.axes(x)[:channel]
    # A transposed convolution does its products at every input position, an ordinary one at every
    # output position.
    positions = op.axes(x)[channel + 1 :] if transposed else sizes
    op.record.work = (*lead, resolve(out), resolve(inner), *op.axes(w)[2:], *positions)
    assert batched or not lead
    return [*lead, resolve(out), *sizes]


def _groups(
    op: Op, x: Tensor, w: Tensor, channel: int, groups: int, *, transposed: bool
) -> tuple[Expr, Expr] | None:
    channels = op.axes(x)[channel]
    if transposed:
        unify(channels, op.axes(w)[0])
        split = peel(op.axes(w)[0], w.shape[0] // groups)
        if split is None:
            return None
        group, inner = split
        out = prod(group, op.axes(w)[1])
    else:
        split_in = peel(channels, channels.size // groups)
        split_out = peel(op.axes(w)[0], w.shape[0] // groups) if split_in else None
        if split_in is None or split_out is None:
            return None
        unify(split_in[0], split_out[0])
        unify(split_in[1], op.axes(w)[1])
        group, inner = resolve(split_out[0]), op.axes(w)[1]
        out = op.axes(w)[0]
    if w.shape[1] > 1:
        op.contracts(w, 0 if transposed else 1)
        op.role(group, "group")
    if not (op.is_zero(x) or op.is_zero(w)):
        op.statistical(inner, "convolution of values that masking does not make zero")
    return out, inner


@rule(aten._grouped_mm)
def grouped_mm(op: Op) -> Any:
    """Rows sorted by expert times a stack of matrices: (tokens, k) x (experts, k, n)."""
    x, y = op.arg("self"), op.arg("mat2")
    if x.dim() != 2 or y.dim() != 3:
        return None
    contract(op, x, y, 1, 1)
    op.lock(op.axes(y)[0], "experts are chosen by the router")
    op.record.work = (*op.axes(x), op.axes(y)[2])
    op.zero = op.is_zero(y)
    return [op.axes(x)[0], op.axes(y)[2]]


@rule(aten._embedding_bag, aten._embedding_bag_forward_only)
def embedding_bag(op: Op) -> list[Axes | None]:
    weight = op.axes(op.arg("weight"))
    op.lock(weight[0], "vocabulary")
    first: Axes = [op.fixed(op.shape[0]), weight[1]]
    return [first, *[None] * (len(op.outs) - 1)]
