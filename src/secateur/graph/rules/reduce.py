"""Reductions and everything that mixes the positions of an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, one
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


# Zeros add nothing to these, so masked and removed positions give the same result.
_IGNORES_ZEROS = {"sum", "nansum", "linalg_vector_norm", "norm", "count_nonzero", "any"}


# These also say where they found it: a position counted among all, removed ones included.
_TELLS_WHERE = {"argmax", "argmin", "max", "min", "median", "nanmedian", "mode"}


def _dims(op: Op, rank: int) -> list[int]:
    dims = op.given.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    if isinstance(dims, int):
        dims = [dims]
    return [d % rank for d in dims] if rank else []


@rule(aten.sum, aten.mean, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm)
@rule(aten.argmax, aten.argmin, aten.any, aten.all, aten.prod, aten.logsumexp, aten.max, aten.min)
@rule(aten.nansum, aten.var_mean, aten.std_mean, aten.norm, aten.aminmax, aten.count_nonzero)
@rule(aten.median, aten.nanmedian, aten.mode)
def reduction(op: Op) -> Any:
    """The reduced axes end. Over a prunable axis the result depends on how many there are."""
    x = op.arg("self", op.arg("input"))
    axes = op.axes(x)
    dims = _dims(op, len(axes))
    order = op.arg("ord", op.arg("p", 2))
    exact = op.name in _IGNORES_ZEROS and op.is_zero(x) and order > 0
    if not exact:
        for d in dims:
            op.statistical(axes[d])
    if op.name in ("mean", "var") and dims == [len(axes) - 1] and op.outs[0].dim() == len(axes):
        op.role(axes[-1], "normalised")  # a norm written out
    if op.name in _TELLS_WHERE and not op.outs[-1].is_floating_point():
        for d in dims:
            op.lock(axes[d], op.name)
    keep = op.outs[0].dim() == len(axes) and bool(axes)
    result = [one() if i in dims else e for i, e in enumerate(axes) if keep or i not in dims]
    op.zero = op.is_zero(x) and op.name not in ("prod", "logsumexp", "all")
    return result if isinstance(op.result, Tensor) else [list(result) for _ in op.outs]


@rule(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax, aten.log_softmax)
def softmax(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    if axes:
        op.statistical(axes[op.arg("dim")], "softmax")
    op.zero = False
    return axes


@rule(aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.sort, aten.argsort, aten.topk)
@rule(aten.kthvalue, aten.cummax, aten.cummin, aten.unique_consecutive, aten._cumsum)
def ordered(op: Op) -> Any:
    """The result depends on which neighbours there are: that axis stays whole."""
    axes = op.axes(op.arg("self"))
    dim = op.arg("dim", 0 if op.name.startswith("cum") else -1)
    if axes:
        op.lock(axes[dim])
    results = []
    for o in op.outs:
        e = list(axes)
        if e and len(e) == o.dim():
            e[dim] = axes[dim] if o.shape[dim] == axes[dim].size else op.fixed(o.shape[dim])
        elif e:
            del e[dim]
        results.append(e)
    return results[0] if isinstance(op.result, Tensor) else results


@rule(aten._fft_r2c, aten._fft_c2c, aten._fft_c2r)
def fft(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    for d in op.arg("dim"):
        op.lock(axes[d], "Fourier transform")
        if op.shape[d] != axes[d].size:
            axes[d] = op.fixed(op.shape[d])
    return axes


@rule(aten._cdist_forward, aten.cdist)
def cdist(op: Op) -> Any:
    """Distances sum over the last axis: equal zeros on both sides add nothing."""
    from secateur.graph.axes import unify

    x, y = op.arg("x1"), op.arg("x2")
    for i in (*range(x.dim() - 2), -1):
        unify(op.axes(x)[i], op.axes(y)[i])
    if not (op.is_zero(x) and op.is_zero(y)):
        op.statistical(op.axes(x)[-1])
    return [*op.axes(x)[:-1], op.axes(y)[-2]]
