"""What stays of a tensor, axis by axis, or two axes together where one depends on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.graph.classes import Axis, Keep, occurrences, rows_mask

# Dimensions and a bool mask over them; a dimension appears at most once.
Selection = list[tuple[tuple[int, ...], Tensor]]


def selection(axes: Sequence[Axis], keep: Keep, sizes: Mapping[str, int]) -> Selection:
    """The masks of a tensor with these frozen axes; axes that stay whole are left out."""
    masks = [rows_mask(a, keep, sizes) for a in axes]
    joint: Selection = []
    taken: set[int] = set()
    for dim, (mask, base) in enumerate(masks):
        if base is None or mask.dim() == 1:
            continue
        other, unit = _along(axes, dim, base, sizes)
        rows = mask[unit] & masks[other][0][:, None]
        joint.append(((other, dim), rows))
        taken |= {other, dim}
    single = [((d,), m) for d, (m, _) in enumerate(masks) if d not in taken and not m.all()]
    return joint + single


def _along(
    axes: Sequence[Axis], dim: int, base: str, sizes: Mapping[str, int]
) -> tuple[int, Tensor]:
    for other, axis in enumerate(axes):
        units = [u for name, u in occurrences(axis, sizes) if name == base]
        if other != dim and units:
            return other, torch.stack(units).amax(0)
    raise ValueError(f"axis {dim} is chosen anew for every {base}, which this tensor does not have")


def gather(tensor: Tensor, chosen: Selection) -> Tensor:
    """The kept part of a tensor."""
    for dims, mask in chosen:
        index = [i.to(tensor.device) for i in mask.nonzero(as_tuple=True)]  # meta has no nonzero
        if len(dims) == 1:
            tensor = tensor.index_select(dims[0], index[0])
            continue
        front = tensor.movedim(dims, (0, 1))
        kept = front[index[0], index[1]].reshape(int(mask.any(1).sum()), -1, *front.shape[2:])
        tensor = kept.movedim((0, 1), dims).contiguous()  # some kernels trust the last stride
    return tensor


def scatter(tensor: Tensor, chosen: Selection, shape: Sequence[int]) -> Tensor:
    """The tensor of the given shape whose kept part is ``tensor``; zero elsewhere."""
    for dims, mask in reversed(chosen):
        mask = mask.to(tensor.device)
        front = tensor.movedim(dims, tuple(range(len(dims))))
        full = tensor.new_zeros(*mask.shape, *front.shape[len(dims) :])
        full[mask] = front.reshape(-1, *front.shape[len(dims) :])
        tensor = full.movedim(tuple(range(len(dims))), dims)
    assert tuple(tensor.shape) == tuple(shape)
    return tensor


def fill(tensor: Tensor, chosen: Selection, value: float) -> Tensor:
    """The tensor with everything that goes set to ``value``, in place."""
    for dims, mask in chosen:
        tensor.movedim(dims, tuple(range(len(dims))))[~mask.to(tensor.device)] = value
    return tensor
