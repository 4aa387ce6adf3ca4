"""Pooling, resizing and padding over image axes: those stay, channels pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, prod, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


_BY_DIMENSIONS = {
    1: ["avg_pool1d", "max_pool1d", "max_pool1d_with_indices", "upsample_nearest1d",
    "upsample_linear1d",
        "reflection_pad1d", "replication_pad1d", "_adaptive_avg_pool1d", "adaptive_avg_pool1d",
        "adaptive_max_pool1d", "_upsample_nearest_exact1d"],
    2: ["avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d",
        "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
        "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
        "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "mkldnn_max_pool2d",
        "_upsample_lanczos2d_aa", "fractional_max_pool2d"],
    3: ["avg_pool3d", "max_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d",
        "adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d", "upsample_trilinear3d",
        "_upsample_nearest_exact3d", "reflection_pad3d", "replication_pad3d"],
}  # fmt: skip
_SPATIAL = {name: k for k, names in _BY_DIMENSIONS.items() for name in names}


@rule(*(getattr(aten, n) for n in _SPATIAL))
def spatial(op: Op) -> Any:
    x = op.arg("self", op.arg("input"))
    axes = op.axes(x)
    k = _SPATIAL[op.name]
    for e in axes[-k:]:
        op.lock(e, "image size")

    def out(t: Tensor) -> Axes:
        return [*axes[:-k], *(op.fixed(n, "image size") for n in t.shape[-k:])]

    return out(op.result) if isinstance(op.result, Tensor) else [out(t) for t in op.outs]


@rule(aten.im2col)
def im2col(op: Op) -> Axes:
    """(B, C, H, W) -> (B, C kh kw, L)."""
    *lead, c, h, w = op.axes(op.arg("self"))
    op.lock(h, "image size")
    op.lock(w, "image size")
    kh, kw = op.arg("kernel_size")
    return [*lead, prod(c, op.fixed(kh * kw, "patch")), op.fixed(op.shape[-1], "image size")]


@rule(aten.col2im)
def col2im(op: Op) -> Axes | None:
    from secateur.graph.axes import peel

    *lead, ckk, length = op.axes(op.arg("self"))
    op.lock(length, "image size")
    kh, kw = op.arg("kernel_size")
    split = peel(ckk, kh * kw)
    if split is None:
        return None
    op.lock(split[1], "patch")
    return [*lead, split[0], *(op.fixed(n, "image size") for n in op.shape[-2:])]


@rule(aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sampler(op: Op) -> Axes:
    """Every entry of the batch, which may be a head, is sampled at the points of its own."""
    x, grid = op.arg("input"), op.arg("grid")
    unify(op.axes(x)[0], op.axes(grid)[0])
    op.zero = op.is_zero(x)
    for e in (*op.axes(x)[2:], *op.axes(grid)[1:]):
        op.lock(e, "image size")
    return [*op.axes(x)[:2], *(op.fixed(n, "image size") for n in op.shape[2:])]


@rule(aten.unfold)
def unfold(op: Op) -> Axes:
    """Sliding windows along one axis."""
    axes = op.axes(op.arg("self"))
    d = op.arg("dimension") % len(axes)
    op.lock(axes[d], "sliding window")
    axes[d] = op.fixed(op.shape[d], "sliding window")
    return [*axes, op.fixed(op.shape[-1], "sliding window")]
