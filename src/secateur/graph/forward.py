"""One forward of a model under observation, which leaves no trace in it."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from secateur.graph.remembered import Remembered


class Scopes:
    """The modules that run, and how often each torch function was called since they began."""

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


def tensors_of_output(value: Any) -> list[Tensor]:
    """Every tensor in what a model returns, be it an object of a class of its own.

    Objects beside tensors are not looked into: they are caches for the next call.
    """
    return tensors_in(value) or _inside(value, set())


def _inside(value: Any, seen: set[int]) -> list[Tensor]:
    if id(value) in seen or isinstance(value, type | nn.Module):
        return []
    seen.add(id(value))
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, tuple | list):
        parts = list(value)
    else:
        slots = [n for k in type(value).__mro__ for n in vars(k).get("__slots__", ())]
        parts = [getattr(value, n, None) for n in slots] + list(
            getattr(value, "__dict__", {}).values()
        )
    return [t for part in parts for t in (tensors_in(part) or _inside(part, seen))]


def arguments_in(value: Any) -> list[Any]:
    """The leaves of an operator's or a function's arguments: tuples, lists and dicts, in order.

    ``torch.utils._pytree`` knows more kinds of nests, which no torch function takes, and is slow.
    """
    if isinstance(value, tuple | list):
        return [x for v in value for x in arguments_in(v)]
    if isinstance(value, dict):
        return [x for v in value.values() for x in arguments_in(v)]
    return [value]


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
    """Parameters and buffers by qualified name; a shared one appears once, under its first."""
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
    memo: dict[int, Any] = {id(t): t for t in named_tensors(model).values()} | uncopied(model)
    plain = [m for m in model.modules() if _copied_by_attributes(type(m))]  # type: ignore[arg-type]
    for m in plain:
        memo[id(m)] = type(m).__new__(type(m))
    for m in plain:
        memo[id(m)].__dict__.update({k: _copied(v, memo) for k, v in vars(m).items()})
    return copy.deepcopy(model, memo)


def uncopied(model: nn.Module) -> dict[int, Any]:
    """The memo with which ``copy.deepcopy`` copies a model that holds TorchScript functions.

    Like Python's functions they need no copy, but cannot be copied.
    """
    found: dict[int, Any] = {}
    stack = [v for m in model.modules() for v in vars(m).values()]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.jit.ScriptFunction):
            found[id(value)] = value
        elif type(value) in (list, tuple):
            stack += value
        elif type(value) is dict:
            stack += value.values()
    return found


@functools.cache
def _copied_by_attributes(kind: type) -> bool:
    """True if to copy a module is to copy its attributes: the class has no say in it."""
    special = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    has_slots = any("__slots__" in vars(k) for k in kind.__mro__)
    return not has_slots and all(getattr(kind, n, 0) is getattr(nn.Module, n, 0) for n in special)


_UNCHANGED = (type(None), bool, int, float, str, torch.device, torch.dtype)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """As ``copy.deepcopy``, quickly for what most attributes of modules are."""
    if type(value) in _UNCHANGED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in (dict, OrderedDict):
        # The many empty tables of hooks and the tables of submodules and parameters.
        memo[id(value)] = twin = type(value)()
        for k, v in value.items():
            twin[_copied(k, memo)] = _copied(v, memo)
        return twin
    return copy.deepcopy(value, memo)


@contextmanager
def evaluating(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """The model in eval mode (or all of it in training), every module's own flag restored."""
    before = [(m, m.training) for m in model.modules()]
    for m, _ in before:
        m.training = training
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
def uncollected() -> Iterator[None]:
    """No garbage collection: while many small objects are made that all stay, it only costs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
def silent_fakes() -> Iterator[None]:
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
    """Empty the ``functools`` caches filled meanwhile: they may hold tensors without data.

    Some forwards keep position tables in a cache of the function, not of the model, where the
    user's own next forward would find them.
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
    kind: Any = functools._lru_cache_wrapper
    ours = ("torch", "secateur", "functools", "re", "typing")
    # Every object refers to its type, and asking the collector is faster than looking at them all.
    found = (o for o in gc.get_referrers(kind) if type(o) is kind)
    return [o for o in found if str(o.__module__).partition(".")[0] not in ours]


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
    training: bool = False,
) -> Any:
    """One forward of ``model`` under ``modes`` without touching its tensors.

    Args:
        model: The model; it runs in eval mode and gets its own flags back.
        example_inputs: As ``trace`` takes them.
        modes: Entered in order around the forward.
        fake: Use tensors without data; otherwise buffers are copied, parameters aliased, but in
            training mode, in which a forward may write them, copied too.
        state: What stands for each parameter and buffer instead of itself.
        on_tensor: Told what stands for each parameter and buffer, and (with no name) each input.
        training: Run in training mode instead.
    """
    args, kwargs = call_arguments(example_inputs)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, training=training))
        stack.enter_context(kept_randomness())
        stack.enter_context(quiet_kernels())
        stack.enter_context(torch.no_grad())
        mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        memory = Remembered(mode) if mode is not None else None
        parameters = {id(p) for p in model.parameters()}

        def convert(t: Tensor) -> Tensor:
            if mode is not None:
                return mode.from_tensor(t, static_shapes=True)
            return t.detach() if id(t) in parameters and not training else t.detach().clone()

        tensors = named_tensors(model)
        if memory is not None:
            stands = {n: t if state is None else state(n, t) for n, t in tensors.items()}
            tensors = memory.fakes(stands, {n: t.device for n, t in tensors.items()})
        else:
            stands = {n: t if state is None else state(n, t) for n, t in tensors.items()}
            if state is None or training:
                stands = {n: convert(t) for n, t in stands.items()}
            tensors = stands
        if mode is not None and parameters and all(p.is_meta for p in model.parameters()):
            args, kwargs = map_tensors(lambda t: t.to("meta"), (args, kwargs))
        args, kwargs = map_tensors(convert, (args, kwargs))
        if on_tensor is not None:
            for name, t in tensors.items():
                on_tensor(name, t)
            for t in tensors_in((args, kwargs)):
                on_tensor(None, t)
        if mode is not None and memory is not None:
            stack.enter_context(clean_caches())
            stack.enter_context(silent_fakes())
            stack.enter_context(mode)
            stack.enter_context(memory)
        for m in modes:
            stack.enter_context(m)
        return torch.func.functional_call(model, tensors, args, kwargs, tie_weights=True)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with every tensor changed; one that is in it twice is one twice again.

    Models ask: an attention whose query *is* its key takes another path.

    Example:
        >>> x = torch.ones(2)
        >>> one, other = map_tensors(torch.clone, (x, x))
        >>> one is other, one is x
        (True, False)
    """
    made: dict[int, Tensor] = {}

    def once(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in made:
            made[id(x)] = change(x)
        return made[id(x)]

    return tree_map(once, value)
