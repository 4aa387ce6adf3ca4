"""Views and other pure rearrangements: exact, whatever their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from secateur.graph.axes import Atom, Axes, one, prod, reshape
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.unsqueeze)
@rule(aten.squeeze, aten.unflatten, aten.flatten, aten.unsqueeze_, aten.squeeze_, aten.view_copy)
def view(op: Op) -> Axes | None:
    """Products are formed and peeled along the row-major order."""
    if op.arg("dtype") is not None:
        return None
    return reshape(op.axes(op.arg("self")), op.shape)


@rule(aten.permute)
def permute(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    return [axes[d] for d in op.arg("dims")]


@rule(aten.transpose, aten.swapaxes)
def transpose(op: Op) -> Axes:
    axes = op.axes(op.arg("self"))
    if axes:
        i, j = op.arg("dim0"), op.arg("dim1")
        axes[i], axes[j] = axes[j], axes[i]
    return axes


@rule(aten.t, aten.numpy_T)
def t(op: Op) -> Axes:
    return op.axes(op.arg("self"))[::-1]


@rule(aten.mT)
def matrix_transpose(op: Op) -> Axes:
    *lead, rows, columns = op.axes(op.arg("self"))
    return [*lead, columns, rows]


@rule(aten.movedim)
def movedim(op: Op) -> Axes | None:
    return None


@rule(aten.as_strided)
def as_strided(op: Op) -> Axes | None:
    """Exact only where it restates the tensor as it is."""
    x: Tensor = op.arg("self")
    same = tuple(op.arg("size")) == tuple(x.shape) and tuple(op.arg("stride")) == x.stride()
    return op.axes(x) if same else None


@rule(aten.expand, aten.repeat)
def expand(op: Op) -> Axes:
    """A repeated axis is Prod(copies, axis); a copied size-one axis is free of content."""
    axes, shape = op.axes(op.arg("self")), op.shape
    offset = len(shape) - len(axes)
    result: Axes = []
    for i, size in enumerate(shape):
        if i < offset or axes[i - offset].size == 1:
            op.zero = op.zero and size == 1  # the copies stay, whatever is masked along them
            result.append(Atom(size) if size != 1 else one())
        elif axes[i - offset].size == size:
            result.append(axes[i - offset])
        else:
            e = axes[i - offset]
            result.append(prod(Atom(size // e.size, lock="repeat"), e))
    return result


@rule(aten.pixel_shuffle)
def pixel_shuffle(op: Op) -> Axes | None:
    """(.., C r r, H, W) -> (.., C, H r, W r)."""
    r = op.arg("upscale_factor")
    *lead, c, h, w = op.axes(op.arg("self"))
    split = reshape([c], [c.size // (r * r), r, r])
    for e in split[1:]:
        op.lock(e, "pixel shuffle")
    return [*lead, split[0], op.fixed(h.size * r, "image size"), op.fixed(w.size * r, "image size")]


@rule(aten.pixel_unshuffle)
def pixel_unshuffle(op: Op) -> Axes:
    r = op.arg("downscale_factor")
    *lead, c, h, w = op.axes(op.arg("self"))
    inner = op.fixed(r * r, "pixel shuffle")
    return [*lead, prod(c, inner), op.fixed(h.size // r), op.fixed(w.size // r)]


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(op: Op) -> Axes:
    """(g, C/g) -> (C/g, g)."""
    g = op.arg("groups")
    lead, c, *rest = op.axes(op.arg("self"))
    outer, inner = reshape([c], [g, c.size // g])
    return [lead, prod(inner, outer), *rest]
