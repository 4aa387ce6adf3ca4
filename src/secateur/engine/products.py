"""Every product of activations with a weight, seen at the operators and not at module classes.

``nn.Linear``, the transposed ``Conv1D`` of GPT-2, packed attention projections, stacked experts and
convolutions all end in a few operators; whatever calls them is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A matrix (outputs, inputs) that multiplies activations: a weight, or a part or view of one.

    Attributes:
        name: Qualified name of the parameter, with an index where it is only a part: ``w[3]``.
        parameter: Qualified name of the parameter.
        shape: Outputs, inputs.
        stride, offset: Where the matrix lies in the parameter, in elements.
    """

    name: str
    parameter: str
    shape: tuple[int, int]
    stride: tuple[int, int]
    offset: int = 0

    def of(self, parameter: Tensor) -> Tensor:
        """The matrix as a view of the parameter, or of a mask that is laid out like it."""
        start = parameter.storage_offset() + self.offset
        return parameter.detach().as_strided(self.shape, self.stride, start)


class Products(TorchDispatchMode):
    """While active, calls ``see(layer, x)`` at every product; ``x`` is (tokens, inputs).

    Args:
        weights: Parameters to watch, by qualified name.
        see: Called after each product.
    """

    def __init__(self, weights: Mapping[str, Tensor], see: Callable[[Layer, Tensor], None]) -> None:
        super().__init__()
        self.see = see
        self.storages: dict[int, list[tuple[str, Tensor]]] = {}
        for name, weight in weights.items():
            place = weight.untyped_storage().data_ptr()
            self.storages.setdefault(place, []).append((name, weight))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        find = _FINDERS.get(func.overloadpacket)
        if find is not None:
            for matrix, x in find(self, *args, **(kwargs or {})):
                layer = self.layer(matrix)
                if layer is not None:
                    self.see(layer, x)
        return result

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in one of the weights."""
        return tensor.untyped_storage().data_ptr() in self.storages

    def layer(self, matrix: Tensor) -> Layer | None:
        """Which part of which weight a matrix is; None if it is of none."""
        rows, columns = matrix.shape
        for name, weight in self.storages.get(matrix.untyped_storage().data_ptr(), ()):
            offset = int(matrix.storage_offset() - weight.storage_offset())
            if offset >= 0 and offset + matrix.numel() <= weight.numel():
                part = "" if matrix.numel() == weight.numel() else f"[{_index(offset, weight)}]"
                strides = matrix.stride()
                return Layer(name + part, name, (rows, columns), (strides[0], strides[1]), offset)
        return None


def _index(offset: int, weight: Tensor) -> str:
    """Where along its first axis a part of a weight begins."""
    return str(offset // max(weight.stride(0), 1))


def _product(seen: Products, a: Tensor, b: Tensor, **_: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if seen.holds(b):
        yield b.T, a
    elif seen.holds(a):
        yield a, b.T


def _product_and_sum(
    seen: Products, _bias: Tensor, a: Tensor, b: Tensor, **_: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    yield from _product(seen, a, b)


def _batch(seen: Products, a: Tensor, b: Tensor, **_: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if not (seen.holds(a) or seen.holds(b)):
        return
    if seen.holds(b) and b.stride(0) == 0:  # one matrix, expanded over the batch
        yield b[0].T, a.flatten(0, 1)
    elif seen.holds(a) and a.stride(0) == 0:
        yield a[0], b.transpose(1, 2).flatten(0, 1)
    else:
        for one, other in zip(a, b, strict=True):
            yield from _product(seen, one, other)


def _batch_and_sum(
    seen: Products, _bias: Tensor, a: Tensor, b: Tensor, **_: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    yield from _batch(seen, a, b)


def _convolution(
    seen: Products, x: Tensor, weight: Tensor, _bias: Any, *how: Any, **_: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    stride, padding, dilation, transposed, _output_padding, groups = how
    if not seen.holds(weight) or transposed or groups != 1 or weight.dim() not in (3, 4):
        return
    if weight.dim() == 3:  # one-dimensional: an image of height one
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        stride, padding, dilation = (
            (d, e[0]) for d, e in ((1, stride), (0, padding), (1, dilation))
        )
    patches = F.unfold(x, weight.shape[2:], tuple(dilation), tuple(padding), tuple(stride))
    yield weight.flatten(1), patches.transpose(1, 2).flatten(0, 1)


def _grouped(
    seen: Products, x: Tensor, weight: Tensor, ends: Tensor | None = None, *_: Any, **__: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Experts: the tokens are sorted by expert, ``ends`` says where each one's end."""
    if not seen.holds(weight) or ends is None or weight.dim() != 3 or x.dim() != 2:
        return
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            yield weight[expert].T, x[start:end]
        start = end


_FINDERS: Mapping[Any, Any] = {
    aten.mm: _product,
    aten.addmm: _product_and_sum,
    aten.bmm: _batch,
    aten.baddbmm: _batch_and_sum,
    aten.convolution: _convolution,
    aten._grouped_mm: _grouped,
}
