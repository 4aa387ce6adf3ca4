"""Correct single arguments of a module's own calls, where no attribute can express the new size.

``reshape(B, N, C)`` with C read off an input that was not pruned, a literal ``512 * 7 * 7``, a
missing ``scale=``: the module becomes an instance of a subclass whose forward runs under a mode
that replaces just those arguments. The edits are data (function, what its operands and the argument
look like, value), so a saved plan can re-apply them without storing code.

A forward may take another path than the traced one (an optional argument, training), so the number
of a call says nothing: an edit is made wherever the call looks as it did when the plan was made.
Calls that look alike but need different values are told apart by their order, and then there must
be as many of them as there were.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import SurgeryError
from secateur.graph.forward import arguments_in, function_name
from secateur.plan.numbers import ARITHMETIC

if TYPE_CHECKING:
    from secateur.plan.plan import Edit

_EDITS = "_secateur_edits"
Call = tuple[tuple[Any, ...], dict[str, Any]]
Shapes = list[tuple[Any, ...]]


def mend(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Make the module's own forward use the edited arguments from now on, and no others."""
    if not isinstance(module, Mended):
        module.__class__ = _mended(type(module))
    module.__dict__[_EDITS] = tuple(edits)


def unmend(model: nn.Module) -> None:
    """Let every mended module make its calls as its class says, as if it had no edits."""
    for module in model.modules():
        if isinstance(module, Mended):
            module.__dict__[_EDITS] = ()


class Mended(nn.Module):
    """A module some of whose calls are made with other arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mode = Mending(self.__dict__[_EDITS])
        with mode:
            result = super().forward(*args, **kwargs)
        mode.check()
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (type(self).__mro__[2],), self.__dict__


def _mended(kind: type[nn.Module]) -> Any:
    """The subclass of a class whose instances are mended."""
    own: dict[str, Any] = {"__module__": kind.__module__}
    if hasattr(kind, "__deepcopy__"):
        own["__deepcopy__"] = _copied
    return type(kind.__name__, (Mended, kind), own)


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Classes that copy themselves (exported graphs) do so as if there were no subclass."""
    mended = type(module)
    module.__class__ = mended.__mro__[2]
    try:
        other = copy.deepcopy(module, memo)
    finally:
        module.__class__ = mended
    mend(other, module.__dict__[_EDITS])
    return other


def _revive(kind: type[nn.Module]) -> nn.Module:
    """Copying and sending between processes rebuild the subclass from the original class."""
    mended = _mended(kind)
    revived: nn.Module = mended.__new__(mended)
    return revived


class Mending(TorchFunctionMode):
    """Puts in the edited arguments where calls look like the recorded ones."""

    def __init__(self, edits: tuple[Edit, ...]) -> None:
        super().__init__()
        self.edits = edits
        self.met = [0] * len(edits)
        self.functions = {edit.function for edit in edits}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name not in self.functions:
            return func(*args, **kwargs)
        shapes = shapes_in(args, kwargs)
        found: dict[str, Edit] = {}  # one for each argument; others that fit say the same
        for i, edit in enumerate(self.edits):
            if looks_like(edit, name, shapes, args, kwargs):
                if edit.of == 0 or edit.call == self.met[i]:
                    found.setdefault(edit.name, edit)
                self.met[i] += 1
        for edit in found.values():
            args, kwargs = put(args, kwargs, edit)
        if name.endswith("chunk") and found:  # sizes given: chunks need not be equal any more
            return torch.split(*args, **kwargs)
        return func(*args, **kwargs)

    def check(self) -> None:
        """Raise a SurgeryError if this forward was not the one that the edits were made for.

        A size that stays unsaid shows itself where it is missing; a factor would not.
        """
        for edit, met in zip(self.edits, self.met, strict=True):
            if met != edit.of if edit.of else met == 0 and _is_factor(edit):
                raise SurgeryError(
                    f"{edit.module or 'the model'}: {edit.function} should use {edit.value} "
                    f"instead of {edit.old}, but this forward made {met} calls like that, where "
                    f"the traced one made {edit.of or 'some'}: it takes another path on these "
                    "inputs or in this mode. Trace and prune the model with inputs that take it."
                )


def shapes_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shapes:
    """Shapes of the tensors among the arguments; those of single numbers do not count."""
    tensors = [t for t in arguments_in((args, kwargs)) if isinstance(t, torch.Tensor)]
    return [tuple(t.shape) for t in tensors if t.dim()]


def looks_like(
    edit: Edit, function: str, shapes: Shapes, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """True if a call is, as far as can be seen, one that the edit was made for."""
    if function != edit.function or len(shapes) != len(edit.operands or ()):
        return False
    free = type(edit.value) is float  # a factor is one for any number of leading axes
    for shape, known in zip(shapes, edit.operands or (), strict=True):
        if len(shape) != len(known) and not free:
            return False
        pairs = zip(reversed(shape), reversed(known), strict=False)
        if not all(n is None or number(size) == n for size, n in pairs):
            return False
    root, *path = edit.name.split("/")
    now = _at(args if root == "args" else kwargs, path)
    return _scalable(now, edit) if edit.varies else _same(now, edit.old)


def _at(value: Any, path: list[str]) -> Any:
    """What a path leads to; None if there is nothing, as where an optional argument is missing."""
    for part in path:
        if isinstance(value, slice):
            value = getattr(value, part)
        elif isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, tuple | list) and int(part) < len(value):
            value = value[int(part)]
        else:
            return _NOTHING
    return value


_NOTHING = object()


def _same(now: Any, old: Any) -> bool:
    if isinstance(old, tuple | list):
        several = isinstance(now, tuple | list) and len(now) == len(old)
        return several and all(_same(a, b) for a, b in zip(now, old, strict=True))
    now = number(now)
    if now is None or old is None:
        return now is old
    if isinstance(now, float):
        return isinstance(old, float) and math.isclose(now, old, rel_tol=1e-6)
    return not isinstance(old, float) and isinstance(now, _WHOLE) and bool(now == old)


def _scalable(now: Any, edit: Edit) -> bool:
    n, d = edit.value["times"]
    now = number(now)
    return isinstance(now, torch.SymInt) or (
        isinstance(now, int) and now > 0 and (now * n) % d == 0
    )


_WHOLE = (int, torch.SymInt)


def number(value: Any) -> Any:
    """The number that a tensor is where a size is meant; anything else as it is.

    Models compute with sizes in tensors, and ``torch.jit.trace`` makes tensors of all sizes.
    """
    if not isinstance(value, torch.Tensor) or value.dim():
        return value
    try:
        with warnings.catch_warnings(action="ignore"):  # that a trace keeps it as it is
            return value.item()
    except RuntimeError:  # it is without data
        return value


def _is_factor(edit: Edit) -> bool:
    return type(edit.value) is float or str(edit.function).strip("_") in ARITHMETIC


def put(args: tuple[Any, ...], kwargs: dict[str, Any], edit: Edit) -> Call:
    """The arguments with the one that ``edit.name`` points to replaced."""
    root, *path = edit.name.split("/")
    old = args if root == "args" else kwargs
    new = _put(old, path, edit)
    return (new, kwargs) if root == "args" else (args, new)


def _put(value: Any, path: list[str], edit: Edit) -> Any:
    if not path:
        return _value(value, edit)
    head, *rest = path
    if isinstance(value, slice):
        parts = {"start": value.start, "stop": value.stop, "step": value.step}
        parts[head] = _put(parts[head], rest, edit)
        return slice(parts["start"], parts["stop"], parts["step"])
    if isinstance(value, dict):
        return {**value, head: _put(value.get(head), rest, edit)}
    if isinstance(value, tuple | list):
        items = list(value)
        items[int(head)] = _put(items[int(head)], rest, edit)
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(f"{edit.function} has no argument {edit.name}")  # looks_like has seen it


def _value(old: Any, edit: Edit) -> Any:
    """``{"times": [n, d]}`` rescales a size, so that it still follows the batch; else the value."""
    if isinstance(edit.value, dict):
        n, d = edit.value["times"]
        return old * n // d
    return edit.value
