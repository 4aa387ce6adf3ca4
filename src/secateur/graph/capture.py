"""Run the model once on fake tensors and write down every operator with the axes of its tensors.

The recorder is a ``TorchDispatchMode``: every ATen operator passes through it, in order, whatever
Python did around it, and its rule (see ``rules/``) says how the axes of the outputs follow from those
of the inputs. A ``TorchFunctionMode`` beside it writes down the calls as Python made them, with their
integer and float arguments: after surgery the same calls are replayed and their sizes corrected.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from secateur.graph.axes import Atom, Axes, Expr, lock, one, resolve
from secateur.graph.rules import find_rule

_ALIASES = {"detach", "detach_", "alias", "lift_fresh", "lift", "lift_fresh_copy"}
_SILENT = {"device", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_contiguous"}
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

    ``scopes`` names the modules that were running, outermost first, with the number of earlier calls
    of the same function since each of them was entered.
    """

    function: str
    scopes: tuple[tuple[str, int], ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Axes]
    inputs: list[Axes]

    @property
    def module(self) -> str:
        return self.scopes[-1][0] if self.scopes else ""


class Op:
    """What a rule sees: the operator's arguments by name, its outputs, and the axes of its tensors."""

    def __init__(self, recorder: Recorder, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.recorder = recorder
        self.func = func
        self.name: str = func.overloadpacket.__name__
        self.result = result
        self.outs: list[Any] = list(result) if isinstance(result, tuple | list) else [result]
        names = [a.name for a in func._schema.arguments]
        self.given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        self.module = recorder.scopes.stack[-1] if recorder.scopes.stack else ""
        self.record = OpRecord(str(func), self.module, [], [])
        self.zero: bool = all(recorder.zero(t) for t in self.tensors())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outs[0].shape)

    def arg(self, name: str, default: Any = None) -> Any:
        value = self.given.get(name, default)
        return default if value is None else value

    def tensors(self) -> list[Tensor]:
        return [t for t in tree_leaves(tuple(self.given.values())) if isinstance(t, Tensor)]

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
        """The result depends on how many positions ``e`` has: removing is not the same as zeroing."""
        self.record.reduced.append((e, why or self.name))

    def role(self, e: Expr, role: str) -> None:
        """What the positions of ``e`` are, in the field's words (head, head_dim, group, ...)."""
        self.recorder.roles.append((e, role))

    def contracts(self, tensor: Tensor, dim: int) -> None:
        """``tensor`` is summed over along ``dim``: if it is a parameter, it consumes that axis."""
        origin = self.recorder.origin.get(id(tensor))
        if origin is not None:
            self.recorder.consumed.add(origin[dim % tensor.dim()])


class Scopes:
    """The modules that are running, and how often each torch function was called since they began."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.entered: list[Counter[str]] = []

    def enter(self, name: str) -> None:
        self.stack.append(name)
        self.entered.append(Counter())

    def leave(self, name: str, output: Any) -> None:
        self.stack.pop()
        self.entered.pop()

    def called(self, function: str) -> tuple[tuple[str, int], ...]:
        """Count a call; returns (module, number of earlier calls) from the outermost module in."""
        scopes = tuple(
            (m, seen[function]) for m, seen in zip(self.stack, self.entered, strict=True)
        )
        for seen in self.entered:
            seen[function] += 1
        return scopes


class Dispatch:
    """Which operators are looked at, and how those without a rule are taken apart."""

    def __init__(self) -> None:
        self.decompositions = core_aten_decompositions()

    def kind(self, func: Any) -> str:
        """silent (no tensor comes out), alias (the same tensor), compound, or known."""
        name = func.overloadpacket.__name__
        if name in _SILENT:
            return "silent"
        if name in _ALIASES:
            return "alias"
        return "known" if find_rule(func) is not None else "compound"

    def decomposed(self, mode: Any, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """Run an operator without a rule through core operators that have one."""
        with mode:
            if func in self.decompositions:
                return True, self.decompositions[func](*args, **kwargs)
            result = func.decompose(*args, **kwargs)
        return result is not NotImplemented, result


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
        self.calls: list[Call] = []
        self.roles: list[tuple[Expr, str]] = []
        self.origin: dict[int, tuple[tuple[str, int], ...]] = {}  # which parameter axes these are
        self.maker: dict[int, str | int] = {}  # a parameter's name, or the number of an operator
        self.consumed: set[tuple[str, int]] = set()
        self.failed_in: str | None = None
        self.unknown: Counter[str] = Counter()
        self.module_outputs: dict[str, Axes] = {}
        self.dispatch = Dispatch()

    def set(self, tensor: Tensor, axes: Sequence[Expr], *, zero: bool = True) -> None:
        self.env[id(tensor)] = list(axes)
        self.zeros[id(tensor)] = zero
        self.alive.append(tensor)

    def axes_of(self, tensor: Tensor) -> Axes:
        if id(tensor) not in self.env:
            self.set(tensor, [Atom(n, lock="constant") if n != 1 else one() for n in tensor.shape])
            known = not isinstance(tensor, torch._subclasses.FakeTensor)
            if known and not tensor.is_floating_point() and tensor.numel() <= _LARGEST_KNOWN:
                self.values[id(tensor)] = tensor
        return self.env[id(tensor)]

    def zero(self, tensor: Tensor) -> bool:
        return self.zeros.get(id(tensor), True) and _storage(tensor) not in self.dirty

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        kind = self.dispatch.kind(func)
        if kind == "silent":
            return func(*args, **kwargs)
        if kind == "compound":
            done, result = self.dispatch.decomposed(self, func, args, kwargs)
            if done:
                return result
        rule = find_rule(func)
        # In-place operators overwrite their first argument; its axes must be known beforehand.
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor):
                self.axes_of(t)
        known = self._known(func, args, kwargs)
        result = func(*args, **kwargs)
        if kind == "alias":
            self.set(result, self.axes_of(args[0]), zero=self.zero(args[0]))
            for table in (self.values, self.origin, self.maker):
                if id(args[0]) in table:
                    table[id(result)] = table[id(args[0])]  # type: ignore[index, assignment]
            return result
        op = Op(self, func, args, kwargs, result)
        op.record.inputs = [list(self.axes_of(t)) for t in op.tensors()]
        op.record.sources = tuple(self.maker.get(id(t)) for t in op.tensors())
        axes = rule(op) if rule else None
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
        if func._schema.is_mutable and not op.zero:
            self.dirty.update(_storage(o) for o in op.outs if isinstance(o, Tensor))
        self._follow_origin(name, args, result)
        if known is not None:
            for out, value in zip(op.outs, known, strict=False):
                if isinstance(out, Tensor):
                    self.values[id(out)] = value
        self.ops.append(op.record)
        return result

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
        sizes = tuple(x.size for x in e)
        if sizes != tuple(out.shape):
            raise AssertionError(f"rule of {op.func} says {sizes}, the tensor is {out.shape}")
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

    def _known(self, func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
        """The values of an integer result all of whose inputs are known: indices, position tables."""
        if torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            return None
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(id(t) not in self.values for t in tensors):
            return None
        if not tensors and func.overloadpacket.__name__ not in ("arange", "full", "ones", "zeros"):
            return None
        real = tree_map(
            lambda x: self.values[id(x)] if isinstance(x, Tensor) else x, (args, kwargs)
        )
        real[1].pop("device", None)
        try:
            with unset_fake_temporarily():
                result = func(*real[0], **real[1])
        except (RuntimeError, TypeError, NotImplementedError, IndexError):
            return None
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


class Calls(TorchFunctionMode):
    """Writes down the torch functions that the forward calls, as it calls them."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if is_quiet(name):
            return func(*args, **kwargs)
        scopes = self.recorder.scopes.called(name)
        before = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = [list(self.recorder.axes_of(t)) for t in before]
        result = func(*args, **kwargs)
        outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.recorder.calls.append(
            Call(
                name,
                scopes,
                tree_map(_plain, args),
                tree_map(_plain, kwargs),
                [list(self.recorder.axes_of(t)) for t in outs],
                inputs,
            )
        )
        return result


class Placeholder:
    """Stands for a tensor among recorded arguments."""

    def __repr__(self) -> str:
        return "<tensor>"


TENSOR = Placeholder()
_QUIET_CALLS = {
    "size", "dim", "numel", "stride", "is_floating_point", "is_complex", "__len__", "element_size",
    "is_contiguous", "storage_offset", "data_ptr", "get_device", "requires_grad_", "ndimension",
    "__hash__", "__repr__", "type", "is_pinned", "untyped_storage", "is_storage", "nelement",
    "is_inference", "is_same_size", "__format__", "__set__", "__delete__", "_is_view", "__bool__",
}  # fmt: skip


def is_quiet(name: str) -> bool:
    """True for calls that only ask about a tensor."""
    return name.startswith("__get__") or name in _QUIET_CALLS


def function_name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if isinstance(func, torch._ops.OpOverload):
        return name.partition(".")[0]  # as exported graphs call them: reshape.default
    return "__get__" + str(getattr(func, "__self__", "")) if name == "__get__" else name


def _plain(x: Any) -> Any:
    return TENSOR if isinstance(x, Tensor) else x


def _to_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nest of tuples, lists, dicts, dataclasses and Hugging Face outputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for name in value.__dataclass_fields__ for t in tensors_in(getattr(value, name))]
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the model takes them: a tensor or tuple positionally, a dict by keyword."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if hasattr(example_inputs, "keys") and hasattr(example_inputs, "__getitem__"):
        return (), {k: example_inputs[k] for k in example_inputs.keys()}  # noqa: SIM118
    return tuple(example_inputs), {}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name; a shared tensor appears once, under its first name."""
    seen: dict[int, str] = {}
    result: dict[str, Tensor] = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if id(t) not in seen:
            seen[id(t)] = name
            result[name] = t
    return result


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer: cheap, and free to change.

    Forwards may keep what they compute (position tables, bias caches): on a skeleton that does not
    reach the user's model.
    """
    shared = {id(t): t for t in named_tensors(model).values()}
    return copy.deepcopy(model, dict(shared))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, every module's own flag restored afterwards."""
    before = [(m, m.training) for m in model.modules()]
    for m, _ in before:
        m.training = False
    try:
        yield
    finally:
        for m, flag in before:
            m.training = flag


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Random number generators go on afterwards as if nothing had run."""
    seeds, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(seeds)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def quiet_kernels() -> Iterator[None]:
    """Fused fast paths off, so that the operators seen are those that the rules know."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


@contextmanager
def _silent_fakes() -> Iterator[None]:
    """Fake kernels that refuse are an answer here, not an error to print."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def clean_caches() -> Iterator[None]:
    """Empty the ``functools`` caches that were filled meanwhile: they may hold tensors without data.

    Some forwards keep position tables in a cache of the function, not of the model, where the user's
    own next forward would find them.
    """
    before = {id(c): c.cache_info().misses for c in _caches(len(sys.modules))}
    try:
        yield
    finally:
        for c in _caches(len(sys.modules)):
            if c.cache_info().misses != before.get(id(c), 0):
                c.cache_clear()


@functools.lru_cache(maxsize=1)
def _caches(_modules_loaded: int) -> list[Any]:
    kind = functools._lru_cache_wrapper
    ours = ("torch", "secateur", "functools", "re", "typing")
    return [
        o
        for o in gc.get_objects()
        if type(o) is kind and str(o.__module__).partition(".")[0] not in ours
    ]


@contextmanager
def module_hooks(model: nn.Module, enter: Any, leave: Any) -> Iterator[None]:
    """Call ``enter(name)`` and ``leave(name, output)`` around every submodule's forward."""
    names = {id(m): n for n, m in model.named_modules()}

    def before(m: nn.Module, _: Any) -> None:
        if id(m) in names:
            enter(names[id(m)])

    def after(m: nn.Module, _: Any, out: Any) -> None:
        if id(m) in names:
            leave(names[id(m)], out)

    register = torch.nn.modules.module
    handles = [
        register.register_module_forward_pre_hook(before),
        register.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for h in handles:
            h.remove()


def run(
    model: nn.Module,
    example_inputs: Any,
    modes: Sequence[Any],
    *,
    fake: bool,
    state: Callable[[str, Tensor], Tensor] | None = None,
    on_tensor: Callable[[str | None, Tensor], None] | None = None,
) -> Any:
    """One forward of ``model`` under ``modes`` without touching its tensors.

    Args:
        model: The model; it runs in eval mode and gets its own flags back.
        example_inputs: As ``trace`` takes them.
        modes: Entered in order around the forward.
        fake: Use tensors without data; otherwise parameters are aliased and buffers copied.
        state: What stands for each parameter and buffer instead of itself.
        on_tensor: Told what stands for each parameter and buffer, and (with no name) each input.
    """
    args, kwargs = call_arguments(example_inputs)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(kept_randomness())
        stack.enter_context(quiet_kernels())
        stack.enter_context(torch.no_grad())
        mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        parameters = {id(p) for p in model.parameters()}

        def convert(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            if mode is not None:
                return mode.from_tensor(t, static_shapes=True)
            return t.detach() if id(t) in parameters else t.detach().clone()

        tensors = named_tensors(model)
        if state is None:
            tensors = {n: convert(t) for n, t in tensors.items()}
        else:
            tensors = {n: state(n, t) for n, t in tensors.items()}
            if mode is not None:
                with mode:  # a stand-in has only a shape; it takes the device of the original
                    devices = {n: t.device for n, t in named_tensors(model).items()}
                    tensors = {
                        n: torch.empty(t.shape, dtype=t.dtype, device=devices[n])
                        for n, t in tensors.items()
                    }
        if mode is not None and parameters and all(p.is_meta for p in model.parameters()):
            args, kwargs = tree_map(_to_meta, (args, kwargs))
        args, kwargs = tree_map(convert, (args, kwargs))
        if on_tensor is not None:
            for name, t in tensors.items():
                on_tensor(name, t)
            for t in tensors_in((args, kwargs)):
                on_tensor(None, t)
        if mode is not None:
            stack.enter_context(clean_caches())
            stack.enter_context(_silent_fakes())
            stack.enter_context(mode)
        for m in modes:
            stack.enter_context(m)
        return torch.func.functional_call(model, tensors, args, kwargs, tie_weights=True)


def mark_outputs(recorder: Recorder, output: Any) -> None:
    for t in tensors_in(output):
        for e in recorder.axes_of(t):
            lock(e, "model output")
