"""Fused scaled dot-product attention, in all its back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, Sum, locked, peel, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


@rule(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_fused_attention_overrideable,
    aten.scaled_dot_product_attention,
)
def attention(op: Op) -> Any:
    """softmax(q k') v: q and k contract the head dim, v's passes through.

    Axes before the last two are shared; with grouped queries, query heads are Prod(kv heads, R).
    The implicit 1/sqrt(head dim) is kept by the surgery, which passes the old scale explicitly.
    """
    q, k, v = op.arg("query"), op.arg("key"), op.arg("value")
    unify(op.axes(q)[-1], op.axes(k)[-1])
    op.role(op.axes(q)[-1], "head_dim")
    if not (op.is_zero(q) or op.is_zero(k)):
        op.statistical(op.axes(q)[-1], "attention over values that masking does not make zero")
    unify(op.axes(k)[-2], op.axes(v)[-2])
    op.statistical(op.axes(k)[-2], "softmax")
    repeated = []  # axes of the queries that the values lack
    for i in range(q.dim() - 2):
        unify(op.axes(k)[i], op.axes(v)[i])
        eq, ek = op.axes(q)[i], op.axes(k)[i]
        if eq.size == ek.size:
            unify(eq, ek)
        else:
            split = peel(eq, eq.size // ek.size) if eq.size % ek.size == 0 else None
            if split is None:
                return None
            unify(split[0], ek)
            if split[0].size > 1:  # all queries of a single head are heads themselves
                op.role(split[1], "query")
            repeated.append(split[1])
    mask = op.given.get("attn_mask", op.given.get("attn_bias"))
    full = [*op.axes(q)[:-1], op.axes(k)[-2]]
    if isinstance(mask, Tensor):
        for a, b in zip(op.axes(mask)[::-1], full[::-1], strict=False):
            if a.size == b.size:
                unify(a, b)
    result: Axes = [*op.axes(q)[:-1], op.axes(v)[-1]]
    if q.dim() > 2:
        op.role(result[-3], "head")
    op.role(result[-1], "head_dim")
    # A query that is zero looks everywhere alike, which gives the mean of the values.
    op.zero = op.is_zero(v) and all(locked(e) for e in (result[-2], *repeated))
    # Two products, q k' and then v: their sizes add along the head dims.
    op.record.work = (*op.axes(q)[:-1], Sum((op.axes(q)[-1], op.axes(v)[-1])), op.axes(k)[-2])
    if isinstance(op.result, Tensor):
        return result
    return [result, *[None] * (len(op.outs) - 1)]
