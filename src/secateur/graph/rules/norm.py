"""Normalisation layers: the affine parameters share the normalised axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, locked, peel, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


def _rest(op: Op, first: Axes) -> Any:
    return first if isinstance(op.result, Tensor) else [first, *[None] * (len(op.outs) - 1)]


@rule(
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._native_batch_norm_legit_functional,
    aten._batch_norm_with_update,
    aten._batch_norm_no_update,
    aten.cudnn_batch_norm,
    aten.batch_norm,
)
def batch_norm(op: Op) -> Any:
    """Statistics per channel: channels do not see each other, so removal is exact.

    Measured statistics run over all other axes; of weights (weight standardisation) those can go.
    """
    x = op.arg("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        p = op.given.get(name)
        if isinstance(p, Tensor):
            unify(op.axes(p)[0], op.axes(x)[1])
    if op.arg("training", op.name == "_batch_norm_with_update"):
        for i, e in enumerate(op.axes(x)):
            if i != 1:
                op.statistical(e, "batch norm")
    others = [e for i, e in enumerate(op.axes(x)) if i != 1]
    scaled = isinstance(op.given.get("weight"), Tensor)
    op.zero = (op.is_zero(x) or scaled) and all(locked(e) for e in others)
    return _rest(op, op.axes(x))


@rule(aten.native_layer_norm, aten.layer_norm, aten._fused_rms_norm, aten.rms_norm)
def layer_norm(op: Op) -> Any:
    """Mean and variance over the last axes: they change when a position goes."""
    x = op.arg("input")
    dims = len(op.arg("normalized_shape"))
    affine = [op.given.get(n) for n in ("weight", "bias")]
    for p in affine:
        if isinstance(p, Tensor):
            for a, b in zip(op.axes(p), op.axes(x)[-dims:], strict=True):
                unify(a, b)
    for e in op.axes(x)[-dims:]:
        op.statistical(e, "layer norm")
        op.role(e, "normalised")
    scaled, shifted = (isinstance(p, Tensor) for p in affine)
    others = op.axes(x)[:-dims]  # a masked head still gets the shift
    op.zero = scaled and (all(locked(e) for e in others) or (op.is_zero(x) and not shifted))
    return _rest(op, op.axes(x))


@rule(aten.native_group_norm, aten.group_norm)
def group_norm(op: Op) -> Any:
    """Statistics per group, C = Prod(G, C/G), and over what comes after the channels.

    Whole groups go exactly, single channels or positions do not.
    """
    x = op.arg("input")
    groups = op.arg("group", op.arg("num_groups"))
    for name in ("weight", "bias"):
        p = op.given.get(name)
        if isinstance(p, Tensor):
            unify(op.axes(p)[0], op.axes(x)[1])
    channels = op.axes(x)[1]
    if groups != channels.size:
        split = peel(channels, channels.size // groups)
        if split is None:
            return None
        op.statistical(split[1], "group norm")
    for e in op.axes(x)[2:]:
        op.statistical(e, "group norm")
    others = [e for i, e in enumerate(op.axes(x)) if i != 1]
    op.zero = isinstance(op.given.get("weight"), Tensor) and all(locked(e) for e in others)
    return _rest(op, op.axes(x))
