"""Correct single arguments of a module's own calls, where no attribute can express the new size.

``reshape(B, N, C)`` with C read off an input that was not pruned, a literal ``512 * 7 * 7``, a
missing ``scale=``: the module becomes an instance of a subclass whose forward runs under a mode
that replaces just those arguments. The edits are data (function, which call of it, which argument,
value), so a saved plan can re-apply them without storing code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import SurgeryError
from secateur.graph.forward import function_name

if TYPE_CHECKING:
    from secateur.plan.plan import Edit

_EDITS = "_secateur_edits"
Call = tuple[tuple[Any, ...], dict[str, Any]]


def mend(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Make the module's forward use the edited arguments from now on.

    Edits of a module that was mended before apply to its calls as they are since then.
    """
    layers = (*getattr(module, _EDITS, ()), tuple(edits))
    if not isinstance(module, Mended):
        kind = type(module)
        module.__class__ = type(kind.__name__, (Mended, kind), {"__module__": kind.__module__})
    module.__dict__[_EDITS] = layers


class Mended(nn.Module):
    """A module some of whose calls are made with other arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for edits in reversed(self.__dict__[_EDITS]):  # the first are nearest to the calls
                stack.enter_context(Mending(self, edits))
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (type(self).__mro__[2],), self.__dict__


def _revive(kind: type[nn.Module]) -> nn.Module:
    """Copying and sending between processes rebuild the subclass from the original class."""
    mended: Any = type(kind.__name__, (Mended, kind), {"__module__": kind.__module__})
    return mended.__new__(mended)


class Mending(TorchFunctionMode):
    """Counts the calls by function and puts in the edited arguments."""

    def __init__(self, module: nn.Module, edits: Iterable[Edit]) -> None:
        super().__init__()
        self.module = module
        self.counts: Counter[str] = Counter()
        self.edits: dict[tuple[str, int], list[Edit]] = {}
        for edit in edits:
            self.edits.setdefault((str(edit.function), int(edit.call or 0)), []).append(edit)
        self.functions = {name for name, _ in self.edits}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name in self.functions:
            edits = self.edits.get((name, self.counts[name]), ())
            self.counts[name] += 1
            for edit in edits:
                args, kwargs = put(args, kwargs, edit)
            if name.endswith("chunk") and edits:  # sizes given: chunks need not be equal any more
                return torch.split(*args, **kwargs)
        return func(*args, **kwargs)


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
    raise SurgeryError(
        f"{edit.module or 'the model'}: call {edit.call} of {edit.function} has no argument "
        f"{edit.name}; its forward is not the one that the plan was made for"
    )


def _value(old: Any, edit: Edit) -> Any:
    """``{"times": [n, d]}`` rescales a size, so that it still follows the batch; else the value."""
    if isinstance(edit.value, dict) and "times" in edit.value:
        n, d = edit.value["times"]
        if not isinstance(old, int) or (old * n) % d:
            raise SurgeryError(
                f"{edit.module or 'the model'}: size {old} in call {edit.call} of {edit.function} "
                f"cannot be scaled by {n}/{d}: the plan was made for another forward"
            )
        return old * n // d
    return edit.value
