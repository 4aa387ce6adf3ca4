"""Which edits a stored plan may make: sizes and factors, nothing else.

An edit is data. It never names something to call: a call edit changes one number (or list of
numbers) of a call that the module's own forward makes, an attribute edit sets a number that is
there already.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn

from secateur.errors import StoreError
from secateur.plan.numbers import VALUES
from secateur.plan.plan import Edit

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*){0,3}", re.ASCII)
_ARGUMENT = re.compile(r"(args|kwargs)(/([0-9]{1,6}|[A-Za-z][A-Za-z0-9_]{0,63})){1,5}", re.ASCII)
_LARGEST = 1 << 48

# Functions whose arguments are sizes, and arithmetic with factors that forwards derive from sizes.
_SIZED = {
    "view", "view_copy", "reshape", "expand", "broadcast_to", "unflatten", "zeros", "ones", "empty",
    "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full", "repeat", "tile",
    "repeat_interleave", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk",
    "unsafe_split", "narrow", "__getitem__", "__setitem__", "pad", "layer_norm", "rms_norm",
    "group_norm", "scaled_dot_product_attention", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
_ARITHMETIC = re.compile(
    r"_{0,2}[ri]?(mul|div|add|sub|pow|truediv|floordiv|true_divide|multiply|divide)_{0,2}"
)


@functools.cache
def _intercepted() -> frozenset[str]:
    """Names of the functions whose calls a mode sees: of these, factors may change."""
    groups = torch.overrides.get_overridable_functions().values()
    return frozenset(getattr(f, "__name__", "") for group in groups for f in group)


def check_edit(edit: Edit, where: str) -> None:
    """Raise a StoreError unless the edit is one that a stored plan may make.

    Args:
        edit: The edit.
        where: What the message says it is in.
    """

    def check(condition: bool, what: str) -> None:
        if not condition:
            raise StoreError(f"{where} may not be stored or loaded: {what}. Make the plan anew.")

    module = edit.module
    check(is_module(module), "it names no module")
    check(isinstance(edit.name, str) and len(edit.name) < 400, "it names nothing to change")
    if edit.call is None:
        check(edit.function is None, "it names a function, but no call of it")
        check(
            _NAME.fullmatch(edit.name) is not None, f"{edit.name[:80]!r} is not a public attribute"
        )
        check(is_numbers(edit.value), f"{edit.name} would become something else than numbers")
        check(edit.old is None or is_numbers(edit.old), f"{edit.name} was something else")
        return
    check(type(edit.call) is int and 0 <= edit.call < 1 << 20, "it names no call")
    check(isinstance(edit.function, str), "it names no function")
    check(
        _ARGUMENT.fullmatch(edit.name) is not None, f"{edit.name[:80]!r} is no argument of a call"
    )
    factor = type(edit.value) is float
    known = edit.function in _SIZED or edit.function in VALUES
    known = known or _ARITHMETIC.fullmatch(str(edit.function)) is not None
    known = known or (factor and edit.function in _intercepted())
    check(known, f"{str(edit.function)[:80]!r} is not a function whose sizes may change")
    scaled = isinstance(edit.value, dict)
    if scaled:
        times = edit.value.get("times")
        pair = isinstance(times, list | tuple) and len(times) == 2
        good = pair and all(type(n) is int and 0 < n < _LARGEST for n in times)
        check(good and len(edit.value) == 1, f"{edit.name} has no proper factor")
    check(scaled or is_numbers(edit.value), f"{edit.name} would become something else than numbers")
    check(edit.operands is not None, "an earlier secateur wrote it, and it tells no calls apart")
    check(_are_shapes(edit.operands), "what its call looks like is no list of shapes")
    check(type(edit.of) is int and 0 <= edit.of < 1 << 20, "it names no number of calls")
    check(type(edit.varies) is bool, "'varies' is not true or false")
    check(isinstance(edit.value, dict) or not edit.varies, f"{edit.name} has no factor")


def _are_shapes(value: Any) -> bool:
    def good(shape: Any) -> bool:
        sizes = isinstance(shape, tuple) and len(shape) < 64
        return sizes and all(n is None or (type(n) is int and 0 <= n < _LARGEST) for n in shape)

    return isinstance(value, tuple) and len(value) < 4096 and all(good(shape) for shape in value)


def check_target(model: nn.Module, edit: Edit, where: str) -> None:
    """Raise a StoreError unless the model has what the edit changes, and it is a number now.

    Only what instances hold themselves is reached: no modules of Python, no classes, no properties.
    """
    try:
        target: Any = model.get_submodule(edit.module)
    except AttributeError as error:
        raise StoreError(
            f"{where} edits module {edit.module!r}, which this {type(model).__name__} lacks: "
            "load onto the architecture that it was made for."
        ) from error
    if edit.call is not None:
        return
    *path, last = edit.name.split(".")
    for part in path:
        target = vars(target).get(part) if hasattr(target, "__dict__") else None
        if isinstance(target, type) or type(target).__name__ in ("module", "function", "method"):
            target = None
    old = vars(target).get(last) if hasattr(target, "__dict__") else None
    if not is_numbers(old) or isinstance(old, int | float) != isinstance(edit.value, int | float):
        raise StoreError(
            f"{where} sets {edit.module or 'the model'}'s {edit.name!r}, which is not a number (or "
            "list of numbers) there: load onto the architecture that it was made for."
        )


def is_module(name: Any) -> bool:
    """True for a text that can be the qualified name of a module.

    PyTorch allows any characters, and no path is made of it: a model has the module or has not.
    """
    return isinstance(name, str) and len(name) < 400 and "" not in name.split(".")[1:]


def is_numbers(value: Any, depth: int = 0) -> bool:
    """True for a finite number, or a list or tuple (of lists) of them."""
    if type(value) is int:
        return abs(value) < _LARGEST
    if type(value) is float:
        return value == value and abs(value) != float("inf")
    many = isinstance(value, tuple | list) and len(value) <= 4096 and depth < 4
    return many and all(is_numbers(v, depth + 1) for v in value)
