"""What an operator made of fake tensors like these before, it makes of them again.

Networks repeat their blocks, so most operators of a forward have run with arguments of the same
shapes already. Torch's fake tensors remember results too, but find them by so much of each tensor
that finding takes most of the time of a trace; and what is new they work out by a hundred times
more steps than the same operator takes on the meta device, which knows shapes as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.parameter import Buffer, Parameter
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

_UNFIT = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
    torch.Tag.maybe_aliasing_or_mutating,
}

_MOST = 50_000
_answers: dict[Any, Any] = {}  # metadata only, the same for every fake mode
_UNASKED = object()


class Remembered(TorchDispatchMode):
    """Stands above a fake mode and answers for it what has been answered.

    An answer is the metadata of the results and which input each shares its memory with, for new
    tensors, or which input a result is.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self.unfit = 0  # operators that could not be answered from memory, now or ever
        self._attributes: dict[torch.device, dict[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and type(args[0]) is FakeTensor:
            return args[0].fake_device  # torch asks it of most tensors
        kwargs = kwargs or {}
        tensors: list[FakeTensor] = []
        signs = _signs(args, tensors), _signs(kwargs.items(), tensors)
        if not tensors or None in signs or not _is_fit(func):
            self.unfit += None in signs or not _is_fit(func)
            return func(*args, **kwargs)
        asked = (id(func), torch.get_default_dtype(), *signs)
        answer = _answers.get(asked, _UNASKED)
        if answer is _UNASKED:
            if len(_answers) > _MOST:
                _answers.clear()
            answer = _answers[asked] = self._on_meta(func, args, kwargs, tensors)
            if answer is None:
                result = func(*args, **kwargs)
                _answers[asked] = _answer(result, tensors)
                self.unfit += _answers[asked] is None
                return result
        if answer is None:
            self.unfit += 1
            return func(*args, **kwargs)
        return self._again(answer, tensors)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing to compile in here, and guarding against it takes time

    def operated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives, without a dispatch of its own if it is in memory."""
        tensors: list[FakeTensor] = []
        signs = _signs(args, tensors), _signs(kwargs.items(), tensors)
        if tensors and None not in signs:
            answer = _answers.get((id(func), torch.get_default_dtype(), *signs))
            if answer is not None:
                return self._again(answer, tensors)
        return func(*args, **kwargs)

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a torch function gives: from memory, if all operators beneath it once were.

        A function of torch whose operators each depend on nothing but metadata does so as well, and
        to answer for it takes one step instead of one for each operator.
        """
        tensors: list[FakeTensor] = []
        signs = _signs(args, tensors), _signs(kwargs.items(), tensors)
        distinct = len({id(t) for t in tensors}) == len(tensors)
        fit = tensors and distinct and None not in signs and _is_of_torch(func)
        if not fit or torch._C._is_any_autocast_enabled():
            return func(*args, **kwargs)
        asked = (func, torch.get_default_dtype(), torch.is_grad_enabled(), *signs)
        answer = _answers.get(asked, _UNASKED)
        if answer is not None and answer is not _UNASKED:
            return self._again(answer, tensors)
        unfit = self.unfit
        result = func(*args, **kwargs)
        if answer is _UNASKED:
            _answers[asked] = _answer(result, tensors) if self.unfit == unfit else None
        return result

    def _again(self, answer: Any, tensors: list[FakeTensor]) -> Any:
        kind, parts = answer
        made: list[Any] = []
        with torch._C._DisableTorchDispatch():  # no mode needs to see what is made here
            for part in parts:
                if type(part) is int:
                    made.append(tensors[part])
                    continue
                shape, stride, dtype, offset, device, of = part
                if of is None:
                    hollow = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                else:
                    memory = tensors[of].untyped_storage()
                    hollow = torch.empty(0, dtype=dtype, device="meta")
                    hollow.set_(memory, offset, shape, stride)
                made.append(self.fake(hollow, device))
        return made[0] if kind is None else kind(made)

    def fakes(
        self, tensors: Mapping[str, Tensor], devices: Mapping[str, torch.device]
    ) -> dict[str, Tensor]:
        """Fake tensors like these, on the given devices.

        Torch's own conversion, which takes longer, knows all kinds of tensors; it is asked about
        all but those of the plain kind, which nearly all parameters and buffers are.
        """
        held = Counter(_storage(t) for t in tensors.values() if _is_ordinary(t))
        made: dict[str, Tensor] = {}
        for name, t in tensors.items():
            if _is_ordinary(t) and held[_storage(t)] == 1 and not t.storage_offset():
                hollow = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
                made[name] = self.fake(hollow.requires_grad_(t.requires_grad), devices[name])
            else:
                made[name] = self.mode.from_tensor(t, static_shapes=True)
        return made

    def fake(self, hollow: Tensor, device: torch.device) -> FakeTensor:
        """A tensor without data on the meta device as one that says it is on another.

        All fake tensors of a mode and device have the same attributes, so they are worked out once.
        """
        attributes = self._attributes.get(device)
        if attributes is None:
            first = FakeTensor(self.mode, hollow, device)
            self._attributes[device] = dict(vars(first))
            return first
        made = Tensor._make_subclass(
            FakeTensor,
            hollow,
            hollow.requires_grad,
            dispatch_device=True,
            device_for_backend_keys=device,
        )
        vars(made).update(attributes)
        return made

    def _on_meta(self, func: Any, args: Any, kwargs: Any, tensors: list[FakeTensor]) -> Any:
        """The answer of the meta device; None if fake tensors may have another."""
        device = tensors[0].fake_device
        if not _is_plain(func) or any(t.fake_device != device for t in tensors):
            return None
        if any(map(_is_channels_last, tensors)):
            return None  # whether the results are laid out like that depends on the device
        with unset_fake_temporarily():
            hollows: list[Tensor] = []
            try:
                result = func(*_hollow(args, hollows), **_hollow(kwargs, hollows))
            except Exception:  # noqa: BLE001 - the fake mode gives the proper error, or knows more
                return None
            return _answer(_as_saved(func, args, result, device), hollows, device)


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)``, from memory if a ``Remembered`` is the innermost mode."""
    mode = _get_current_dispatch_mode()
    if isinstance(mode, Remembered):
        operator = isinstance(func, torch._ops.OpOverload)
        return (mode.operated if operator else mode.called)(func, args, kwargs)
    return func(*args, **kwargs)


@cache
def _is_of_torch(func: Any) -> bool:
    """True for functions and methods of torch itself: others may do more than call operators."""
    where = getattr(func, "__module__", None) or getattr(func, "__objclass__", type).__module__
    return where == "torch" or where.startswith("torch.")


def _hollow(value: Any, hollows: list[Tensor]) -> Any:
    """The arguments with plain tensors on the meta device, which are collected, for fake ones."""
    if isinstance(value, FakeTensor):
        hollow = torch.empty(0, dtype=value.dtype, device="meta")
        memory = value.untyped_storage()
        hollow.set_(memory, value.storage_offset(), value.shape, value.stride())
        hollows.append(hollow)
        return hollow
    if isinstance(value, tuple | list):
        return [_hollow(v, hollows) for v in value]
    if isinstance(value, dict):
        return {k: _hollow(v, hollows) for k, v in value.items()}
    return value


def _as_saved(func: Any, args: Any, result: Any, device: torch.device) -> Any:
    """The results as on the device: in eval mode batch norm saves no statistics on the CPU.

    It is the one operator whose meta kernel asks for the device.
    """
    if func is not torch.ops.aten.native_batch_norm.default or device.type != "cpu" or args[5]:
        return result
    return result[0], *(t.new_empty(0) for t in result[1:])


def _is_ordinary(t: Tensor) -> bool:
    """True if shape, strides and dtype say all of a tensor but its values."""
    return (
        type(t) in (Tensor, Parameter, Buffer)
        and t.layout == torch.strided
        and not (t.is_quantized or t.is_conj() or t.is_neg())
    )


def _is_channels_last(t: Tensor) -> bool:
    """True for an image whose channels are not laid out as planes, one after another."""
    expected = 1
    for size, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
        if stride != expected:
            return t.dim() > 3 and t.stride(1) == 1
        expected *= size
    return False


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
        elif kind is slice:
            inner = _signs((x.start, x.stop, x.step), tensors)
            if inner is None:
                return None
            signs.append((kind, inner))
        else:
            return None
    return tuple(signs)


_PLAIN = {
    type(None), bool, int, float, str, type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
}  # fmt: skip


def _metadata(x: FakeTensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.storage_offset(), x.fake_device


@cache
def _is_fit(func: Any) -> bool:
    """True if the results depend on nothing but the arguments' metadata, and nothing is changed."""
    packet = func.overloadpacket.__name__
    return not (func._schema.is_mutable or _UNFIT & set(func.tags) or packet.startswith("lift"))


_AS_ON_META = {
    "view",
    "_unsafe_view",
    "select",
    "slice",
    "embedding",
    "convolution",
    "native_layer_norm",
}


@cache
def _is_plain(func: Any) -> bool:
    """True if fake tensors leave the operator to the meta device, as most of torch's own."""
    if func.namespace != "aten" or any(a.name == "device" for a in func._schema.arguments):
        return func is torch.ops.aten._to_copy.default
    return func not in op_implementations_dict or func.overloadpacket.__name__ in _AS_ON_META


def _answer(result: Any, tensors: Sequence[Any], device: torch.device | None = None) -> Any:
    """The results as metadata; None if new ones cannot be made from that.

    Args:
        result: What the operator gave.
        tensors: What it was given.
        device: Where the results would be, if they are on the meta device.
    """
    several = isinstance(result, tuple | list)
    outs: list[Any] = list(result) if several else [result]
    memory = [_storage(t) for t in tensors]
    kind: Any = FakeTensor if device is None else Tensor
    parts: list[Any] = []
    fresh = set()
    for out in outs:
        if type(out) is not kind:
            return None
        same = [k for k, t in enumerate(tensors) if t is out]
        if same:
            parts.append(same[0])
            continue
        if out.requires_grad:
            return None
        if out.constant is not None if device is None else not out.is_meta:
            return None
        if out.layout != torch.strided or out.is_complex():
            return None
        shared = [k for k, m in enumerate(memory) if m == _storage(out)]
        if len(shared) > 1 or (not shared and _storage(out) in fresh):
            return None
        fresh.add(_storage(out))
        if not shared and out.storage_offset():
            return None
        where = out.fake_device if device is None else device
        about = out.shape, out.stride(), out.dtype, out.storage_offset(), where
        parts.append((*about, shared[0] if shared else None))
    return type(result) if several else None, parts


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata
