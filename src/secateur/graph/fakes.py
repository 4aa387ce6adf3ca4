"""Fake tensors whose ordinary operators take a short way.

``FakeTensorMode`` looks every call up in a cache whose key costs more than the kernel that it saves.
For operators that end in a plain meta kernel anyway, and tensors of one device, the kernel is called
at once and its result wrapped; everything else takes the long way, as does whatever fails here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_PLAIN = """
    abs add addbmm addcmul addmm avg_pool2d baddbmm bmm cat clamp clamp_min clone cos div eq erf exp
    expand ge gelu gt hardsigmoid hardswish hardtanh le leaky_relu lt masked_fill max_pool2d_with_indices
    mean mm mul native_group_norm native_layer_norm ne neg permute pow reciprocal relu rsqrt rsub
    sigmoid silu sin slice _softmax split split_with_sizes sqrt squeeze sub sum t tanh transpose
    _unsafe_view unsqueeze view where _adaptive_avg_pool2d _native_batch_norm_legit_no_training
""".split()


@cache
def plain(func: Any) -> bool:
    """True for an overload whose fake result is that of its meta kernel."""
    name = func.overloadpacket.__name__
    if func.namespace != "aten" or (name not in _PLAIN and name.rstrip("_") not in _PLAIN):
        return False
    return func._overloadname != "out"


class Fake(FakeTensor):
    """A fake tensor with little of its own: what others keep per tensor is a constant here."""

    constant = real_tensor = pytype = dispatch_keys = None
    nonzero_memo = item_memo = unique_memo = unique_consecutive_memo = nested_int_memo = None

    @staticmethod
    def __new__(cls, mode: FakeTensorMode, meta: Tensor, device: torch.device) -> Fake:
        self = Tensor._make_subclass(
            cls, meta, False, dispatch_device=True, device_for_backend_keys=device
        )
        self._fake_device, self.fake_mode = device, mode
        return self

    def __init__(self, *args: Any) -> None:
        pass


class Fakes(FakeTensorMode):
    """A ``FakeTensorMode`` with a short way for plain operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if plain(func):
            result = self._short(func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    def _short(self, func: Any, args: Any, kwargs: Any) -> Any:
        device = None
        for value in args:
            for t in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(t, Tensor):
                    continue
                if not isinstance(t, FakeTensor) or t.constant is not None:
                    return NotImplemented
                if device is None:
                    device = t._fake_device
                elif t._fake_device != device:
                    return NotImplemented
        if device is None or any(isinstance(v, Tensor) for v in kwargs.values()):
            return NotImplemented
        try:
            with in_kernel_invocation_manager(self):
                result = func(*args, **kwargs)
        except Exception:  # noqa: BLE001 - the long way says what is wrong
            return NotImplemented
        if isinstance(result, Tensor):
            return self._wrapped(result, device)
        if isinstance(result, list | tuple):
            return type(result)(self._wrapped(r, device) for r in result)
        return result

    def _wrapped(self, t: Any, device: torch.device) -> Any:
        if not isinstance(t, Tensor) or isinstance(t, FakeTensor):
            return t
        return Fake(self, t, device)
