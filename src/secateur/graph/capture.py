"""Run the model once on fake tensors and write down every operator with the axes of its tensors.

The recorder is a ``TorchDispatchMode``: every ATen operator passes through it, in order, whatever
Python did around it, and its rule (see ``rules/``) says how the axes of the outputs follow from
those of the inputs. A ``TorchFunctionMode`` beside it writes down the calls as Python made them,
with their integer and float arguments: after surgery the same calls are replayed and their sizes
corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from secateur.graph.axes import Atom, Axes, Expr, lock, one, resolve
from secateur.graph.forward import (
    Scopes,
    arguments_in,
    function_name,
    is_quiet,
    tensors_in,
)
from secateur.graph.operators import Dispatch, described
from secateur.graph.remembered import called
from secateur.graph.rules import RuleError, find_rule, told

_LARGEST_KNOWN = 1 << 20  # integer tensors up to this size keep their values while recording


@dataclass
class OpRecord:
    """One ATen operator as it ran: what it was, whose it was, and the axes it saw and made."""

    name: str
    module: str
    inputs: list[Axes]
    outputs: list[Axes | None]
    reduced: list[tuple[Expr, str]] = field(default_factory=list)
    work: tuple[Expr, ...] = ()
    sources: tuple[str | int | None, ...] = ()


@dataclass
class Call:
    """One call of a torch function as the forward made it.

    ``scopes`` names the modules that were running, outermost first, with the number of earlier
    calls of the same function since each of them was entered. ``decisions`` are the integers and
    booleans of its result, if it was computed from data: indices, masks, counts.
    """

    function: str
    scopes: tuple[tuple[str, int], ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Axes]
    inputs: list[Axes]
    decisions: tuple[Any, ...] = ()

    @property
    def module(self) -> str:
        return self.scopes[-1][0] if self.scopes else ""


class Op:
    """What a rule sees: the operator's arguments by name, its outputs, its tensors' axes."""

    def __init__(
        self,
        recorder: Recorder,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        result: Any,
    ) -> None:
        about = described(func)
        self.recorder = recorder
        self.func = func
        self.name: str = about.name
        self.result = result
        self.outs: list[Any] = list(result) if isinstance(result, tuple | list) else [result]
        self.given: dict[str, Any] = dict(zip(about.arguments, args, strict=False)) | kwargs
        self.module = recorder.scopes.stack[-1] if recorder.scopes.stack else ""
        self.record = OpRecord(about.full_name, self.module, [], [])
        self._tensors = tensors
        self.zero: bool = all(recorder.zero(t) for t in tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outs[0].shape)

    def arg(self, name: str, default: Any = None) -> Any:
        value = self.given.get(name, default)
        return default if value is None else value

    def tensors(self) -> list[Tensor]:
        return self._tensors

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor, one expression a dimension, refined as far as is known."""
        return [resolve(e) for e in self.recorder.axes_of(tensor)]

    def value(self, tensor: Tensor) -> Tensor | None:
        """The values of an integer tensor that depends on no input, if it is known."""
        return self.recorder.values.get(id(tensor))

    def is_zero(self, tensor: Tensor) -> bool:
        """True if masking a unit makes the tensor zero wherever that unit is."""
        return self.recorder.zero(tensor)

    def lock(self, e: Expr, why: str | None = None) -> None:
        where = f" in {self.module}" if self.module else ""
        lock(e, f"{why or self.name}{where}")

    def fixed(self, size: int, why: str | None = None) -> Atom:
        """A new axis that is never pruned."""
        return Atom(size, lock=why or self.name) if size != 1 else one()

    def statistical(self, e: Expr, why: str | None = None) -> None:
        """The result depends on how many positions ``e`` has: removing is not zeroing."""
        self.record.reduced.append((e, why or self.name))

    def role(self, e: Expr, role: str) -> None:
        """What the positions of ``e`` are, in the field's words (head, head_dim, group, ...)."""
        self.recorder.roles.append((e, role))

    def contracts(self, tensor: Tensor, dim: int) -> None:
        """``tensor`` is summed over along ``dim``: if it is a parameter, it consumes that axis."""
        origin = self.recorder.origin.get(id(tensor))
        if origin is not None:
            self.recorder.consumed.add(origin[dim % tensor.dim()])


class Recorder(TorchDispatchMode):
    """Keeps the axes of every tensor seen and asks the rules for those of each new one."""

    def __init__(self) -> None:
        super().__init__()
        self.scopes = Scopes()
        self.env: dict[int, Axes] = {}
        self.zeros: dict[int, bool] = {}
        self.dirty: set[int] = set()
        self.values: dict[int, Tensor] = {}
        self.alive: list[Any] = []  # ids are only unique among living objects
        self.ops: list[OpRecord] = []
        self.beside: list[OpRecord] = []  # of other forwards, which show what this one left out
        self.calls: list[Call] = []
        self.roles: list[tuple[Expr, str]] = []
        self.origin: dict[int, tuple[tuple[str, int], ...]] = {}  # which parameter axes these are
        self.maker: dict[int, str | int] = {}  # a parameter's name, or the number of an operator
        self.consumed: set[tuple[str, int]] = set()
        self.calling = 0  # depth of the calls that Python makes; TorchScript makes none
        self.failed_in: str | None = None
        self.attributes: dict[int, str] = {}  # plain tensors that modules hold, by their name
        self.unknown: Counter[str] = Counter()
        self.module_outputs: dict[str, Axes] = {}
        self.dispatch = Dispatch()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing to compile in here, and guarding against it takes time

    def set(self, tensor: Tensor, axes: Sequence[Expr], *, zero: bool = True) -> None:
        self.env[id(tensor)] = list(axes)
        self.zeros[id(tensor)] = zero
        self.alive.append(tensor)

    def axes_of(self, tensor: Tensor) -> Axes:
        if id(tensor) not in self.env:
            name = self.attributes.get(id(tensor))
            why = f"plain tensor {name}: register it as a buffer" if name else "constant"
            self.set(tensor, [Atom(n, lock=why) if n != 1 else one() for n in tensor.shape])
            known = not isinstance(tensor, torch._subclasses.FakeTensor)
            if known and not tensor.is_floating_point() and tensor.numel() <= _LARGEST_KNOWN:
                self.values[id(tensor)] = tensor
        return self.env[id(tensor)]

    def zero(self, tensor: Tensor) -> bool:
        return self.zeros.get(id(tensor), True) and _storage(tensor) not in self.dirty

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        about = described(func)
        kind = self.dispatch.kind(func)
        if kind == "silent":
            asked = args[0]
            if about.name == "device" and isinstance(asked, FakeTensor):
                return asked.fake_device  # asked of most tensors, and a dispatch each time
            return func(*args, **kwargs)
        if kind == "compound":
            done, result = self.dispatch.decomposed(self, func, args, kwargs)
            if done:
                return result
        rule = find_rule(func)
        # In-place operators overwrite their first argument; its axes must be known beforehand.
        tensors = [t for t in arguments_in((args, kwargs)) if isinstance(t, Tensor)]
        for t in tensors:
            self.axes_of(t)
        known = self._known(func, args, kwargs, tensors)
        result = called(func, args, kwargs)
        if kind == "alias":
            self.set(result, self.axes_of(args[0]), zero=self.zero(args[0]))
            for table in (self.values, self.origin, self.maker):
                if id(args[0]) in table:
                    table[id(result)] = table[id(args[0])]  # type: ignore[index, assignment]
            return result
        op = Op(self, func, args, kwargs, tensors, result)
        op.record.inputs = [list(self.axes_of(t)) for t in op.tensors()]
        op.record.sources = tuple(self.maker.get(id(t)) for t in op.tensors())
        axes = told(rule, op) if rule else None
        if not self.calling and about.name.rstrip("_") in _ARITHMETIC:
            self._lock_if_scaled(op)
        if axes is None:
            axes = self._opaque(op, known_rule=rule is not None)
        elif isinstance(result, Tensor):
            axes = [axes]
        for out, e in zip(op.outs, axes, strict=False):
            if isinstance(out, Tensor):
                self._note(op, out, e)
                self.maker[id(out)] = len(self.ops)
        op.record.outputs = [
            list(self.env[id(o)]) if isinstance(o, Tensor) else None for o in op.outs
        ]
        if about.mutates and not op.zero:
            self.dirty.update(_storage(o) for o in op.outs if isinstance(o, Tensor))
        self._follow_origin(about.name, args, result)
        if known is not None:
            for out, value in zip(op.outs, known, strict=False):
                if isinstance(out, Tensor):
                    self.values[id(out)] = value
        self.ops.append(op.record)
        return result

    def _lock_if_scaled(self, op: Op) -> None:
        """A number in compiled code may be computed from a width, and there nothing corrects it."""
        numbers = [v for v in op.given.values() if type(v) in (int, float)]
        for t in op.tensors() if numbers else ():
            for e in self.axes_of(t):
                op.lock(e, f"{op.name} with a number inside TorchScript code")

    def _follow_origin(self, name: str, args: Any, result: Any) -> None:
        """A transposed or converted parameter is still that parameter."""
        origin = self.origin.get(id(args[0])) if args and isinstance(args[0], Tensor) else None
        if origin is None or not isinstance(result, Tensor):
            return
        if name == "t":
            self.origin[id(result)] = origin[::-1]
        elif name == "permute":
            self.origin[id(result)] = tuple(origin[d] for d in args[1])
        elif name == "transpose":
            moved = list(origin)
            moved[args[1]], moved[args[2]] = moved[args[2]], moved[args[1]]
            self.origin[id(result)] = tuple(moved)
        elif name in ("clone", "_to_copy"):
            self.origin[id(result)] = origin

    def _note(self, op: Op, out: Tensor, e: Axes | None) -> None:
        if e is None:
            e = [op.fixed(n) for n in out.shape]
        sizes = tuple(getattr(x, "size", x) for x in e)
        if sizes != tuple(out.shape):
            raise RuleError(
                f"the rule of {op.func} gives axes of {sizes}, its output is {tuple(out.shape)}"
            )
        self.set(out, [resolve(x) for x in e], zero=op.zero)

    def _opaque(self, op: Op, *, known_rule: bool) -> list[Axes | None]:
        """An operator that nothing is known about: all its axes stay, and it is named once."""
        if not known_rule:
            self.unknown[str(op.func)] += 1
        for t in op.tensors():
            for e in self.axes_of(t):
                op.lock(e, f"operator {op.func}")
        op.zero = False
        return [
            [op.fixed(n, f"operator {op.func}") for n in o.shape] if isinstance(o, Tensor) else None
            for o in op.outs
        ]

    def _known(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]
    ) -> list[Tensor] | None:
        """The values of an integer result whose inputs are all known: indices, position tables."""
        if any(id(t) not in self.values for t in tensors):
            return None
        about = described(func)
        if about.random or about.mutates:
            return None
        if not tensors and about.name not in ("arange", "full", "ones", "zeros"):
            return None
        real = tree_map(
            lambda x: self.values[id(x)] if isinstance(x, Tensor) else x, (args, kwargs)
        )
        real[1].pop("device", None)
        try:
            with unset_fake_temporarily():
                result = func(*real[0], **real[1])
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            return None  # the value is unknown, which is always safe: nothing is concluded from it
        outs = list(result) if isinstance(result, tuple | list) else [result]
        fit = all(
            isinstance(o, Tensor) and not o.is_floating_point() and o.numel() <= _LARGEST_KNOWN
            for o in outs
        )
        return outs if fit else None

    def leave(self, name: str, output: Any) -> None:
        """A module ended: remember the axes of what it gave, or that it is the one that failed."""
        if output is None and self.failed_in is None:
            self.failed_in = name or "the model's forward"  # hooks run even when the forward raises
        self.scopes.leave(name, output)
        found = [self.axes_of(t) for t in tensors_in(output)]
        if found:
            self.module_outputs.setdefault(name, found[0])


_ARITHMETIC = {"mul", "div", "add", "sub", "rsub", "pow"}


class Calls(TorchFunctionMode):
    """Writes down the torch functions that the forward calls, as it calls them."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.recorder.calling += 1
        try:
            return self._called(func, args, kwargs or {})
        finally:
            self.recorder.calling -= 1

    def _called(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = function_name(func)
        if is_quiet(name):
            return func(*args, **kwargs)
        scopes = self.recorder.scopes.called(name)
        before = [t for t in arguments_in((args, kwargs)) if isinstance(t, Tensor)]
        inputs = [list(self.recorder.axes_of(t)) for t in before]
        result = func(*args, **kwargs)
        results = arguments_in(result)
        outs = [t for t in results if isinstance(t, Tensor)]
        self.recorder.calls.append(
            Call(
                name,
                scopes,
                tuple(_plain(a) for a in args),
                {k: _plain(v) for k, v in kwargs.items()},
                [list(self.recorder.axes_of(t)) for t in outs],
                inputs,
                tuple(_decision(x) for x in results),
            )
        )
        return result


class Placeholder:
    """Stands for a tensor among recorded arguments."""

    def __repr__(self) -> str:
        return "<tensor>"


TENSOR = Placeholder()


def _plain(x: Any) -> Any:
    if isinstance(x, tuple | list | dict):
        return tree_map(lambda leaf: TENSOR if isinstance(leaf, Tensor) else leaf, x)
    return TENSOR if isinstance(x, Tensor) else x


def _decision(x: Any) -> Any:
    """A copy of an integer or boolean result that has data, else None."""
    if not isinstance(x, Tensor):
        return x if isinstance(x, bool | int | float) else None
    known = not isinstance(x, FakeTensor) and not x.is_meta and x.numel() <= _LARGEST_KNOWN
    if not known or x.is_floating_point() or x.is_complex():
        return None
    with _disable_current_modes():
        return x.detach().clone()


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata
