"""What an operator made of fake tensors like these before, it makes of them again.

Networks repeat their blocks, so most operators of a forward have run with arguments of the same
shapes already. Torch's fake tensors remember results too, but find them by so much of each tensor
that finding takes most of the time of a trace.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

_UNFIT = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
    torch.Tag.maybe_aliasing_or_mutating,
}

_MOST = 50_000
_answers: dict[Any, Any] = {}  # metadata only, the same for every fake mode


class Remembered(TorchDispatchMode):
    """Stands above a fake mode and answers for it what has been answered.

    An answer is the metadata of the results and which input each shares its memory with; the
    tensors are new.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[FakeTensor] = []
        signs = _signs(args, tensors), _signs(kwargs.items(), tensors)
        asked = (func, torch.get_default_dtype(), *signs)
        if not tensors or None in signs or not _is_fit(func):
            return func(*args, **kwargs)
        if asked in _answers:
            answer = _answers[asked]
            return func(*args, **kwargs) if answer is None else self._again(answer, tensors)
        result = func(*args, **kwargs)
        if len(_answers) > _MOST:
            _answers.clear()
        _answers[asked] = _answer(result, tensors)
        return result

    def _again(self, answer: Any, tensors: list[FakeTensor]) -> Any:
        kind, parts = answer
        made = []
        with unset_fake_temporarily():
            for shape, stride, dtype, offset, device, of in parts:
                if of is None:
                    hollow = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                else:
                    hollow = torch.empty(0, dtype=dtype, device="meta")
                    hollow.set_(tensors[of].untyped_storage(), offset, shape, stride)
                made.append(FakeTensor(self.mode, hollow, device))
        return made[0] if kind is None else kind(made)


def _signs(values: Any, tensors: list[FakeTensor]) -> tuple[Any, ...] | None:
    """What of each argument decides the results, the tensors among them collected; None: not known.

    The numbers 1, 1.0 and True are equal but decide different dtypes, so types are part of it.
    """
    signs: list[Any] = []
    for x in values:
        kind = type(x)
        if kind is FakeTensor:
            if x.constant is not None or x.dtype.is_complex:
                return None
            tensors.append(x)
            signs.append(_metadata(x))
        elif kind in _PLAIN:
            signs.append((kind, x))
        elif isinstance(x, tuple | list):
            inner = _signs(x, tensors)
            if inner is None:
                return None
            signs.append(inner)
        else:
            return None
    return tuple(signs)


_PLAIN = {
    type(None), bool, int, float, str,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip


def _metadata(x: FakeTensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.storage_offset(), x.fake_device


@cache
def _is_fit(func: Any) -> bool:
    """True if the results depend on nothing but the arguments' metadata, and nothing is changed."""
    packet = func.overloadpacket.__name__
    return not (func._schema.is_mutable or _UNFIT & set(func.tags) or packet.startswith("lift"))


def _answer(result: Any, tensors: list[FakeTensor]) -> Any:
    """The results as metadata; None if new ones cannot be made from that."""
    several = isinstance(result, tuple | list)
    outs = list(result) if several else [result]
    memory = [_storage(t) for t in tensors]
    parts, fresh = [], set()
    for out in outs:
        if type(out) is not FakeTensor or out.constant is not None or out.requires_grad:
            return None
        if out.layout != torch.strided or out.is_complex() or any(out is t for t in tensors):
            return None
        shared = [k for k, m in enumerate(memory) if m == _storage(out)]
        if len(shared) > 1 or (not shared and _storage(out) in fresh):
            return None
        fresh.add(_storage(out))
        if not shared and out.storage_offset():
            return None
        parts.append((*_metadata(out), shared[0] if shared else None))
    return type(result) if several else None, parts


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata
