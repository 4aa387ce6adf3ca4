"""Numbers that a forward computes from a width keep the value that they had in the dense model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.graph.graph import FrozenCall

# Whole numbers among the arguments of these are operands, not sizes.
ARITHMETIC = {
    "mul", "div", "add", "sub", "pow", "rsub", "rmul", "rdiv", "rpow", "truediv", "rtruediv",
    "radd",
    "imul", "idiv", "itruediv", "iadd", "isub", "true_divide", "multiply", "divide", "floordiv",
}  # fmt: skip

# Of these, only the arguments at these places are: what a tensor is filled with or bounded by.
VALUES = {
    "tensor": (0, "data"), "as_tensor": (0, "data"), "scalar_tensor": (0, "s"),
    "full": (1, "fill_value"), "full_like": (1, "fill_value"), "new_full": (2, "fill_value"),
    "new_tensor": (1, "data"), "fill_": (1, "value"), "fill": (1, "value"),
    "masked_fill": (2, "value"), "masked_fill_": (2, "value"), "__setitem__": (2,),
    "clamp": (1, 2, "min", "max"), "clamp_": (1, 2, "min", "max"), "clip": (1, 2, "min", "max"),
    "clamp_min": (1, "min"), "clamp_max": (1, "max"), "where": (1, 2, "input", "other"),
}  # fmt: skip


def with_old_numbers(
    call: FrozenCall, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with factors computed from a width (``1 / sqrt(head_dim)``) as they were.

    Args:
        call: As the dense model made it.
        args: Positional arguments of the same call now.
        kwargs: Its keyword arguments now.

    Example:
        >>> import torch
        >>> call = FrozenCall("tensor", (), (24,), {"dtype": torch.float}, (), ((),))
        >>> with_old_numbers(call, (12,), {"dtype": torch.float})
        ((24,), {'dtype': torch.float32})
    """
    whole = call.function.strip("_") in ARITHMETIC
    places = VALUES.get(call.function, ()) if _is_a_quantity(call, args, kwargs) else ()
    if len(args) == len(call.args):
        pairs = zip(args, call.args, strict=True)
        args = tuple(_kept(n, o, whole or i in places) for i, (n, o) in enumerate(pairs))
    old = call.kwargs
    return args, {k: _kept(v, old.get(k), whole or k in places) for k, v in kwargs.items()}


def _is_a_quantity(call: FrozenCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True if the call makes one number or real numbers; several whole ones may be positions."""
    if call.outputs and not call.outputs[0]:
        return True
    dtype = kwargs.get("dtype")
    if dtype is None and call.function != "new_tensor":
        dtype = next((a.dtype for a in args if isinstance(a, Tensor)), None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _kept(new: Any, old: Any, whole: bool) -> Any:
    """``old`` if both are numbers that differ; whole numbers only where ``whole`` says so."""
    if isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old):
        items = [_kept(n, o, whole) for n, o in zip(new, old, strict=True)]
        same = all(a is b for a, b in zip(items, new, strict=True))
        return new if same else type(new)(items)
    number = isinstance(old, float) or (whole and isinstance(old, int))
    usable = number and isinstance(new, int | float) and not isinstance(old, bool)
    return old if usable and new != old else new
