"""What the example's forward leaves out: experts that no token reached, heads of training.

What feeds such a module is pruned, so it has to be pruned along or it would not fit any more. Two
more forwards show how: one in which an unused module is given what its twin was given (another of
the same class and shapes in the same list), and one in training mode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from secateur.graph.axes import unify
from secateur.graph.capture import Recorder
from secateur.graph.forward import named_tensors, tensors_in

log = logging.getLogger(__name__)
Observe = Callable[[nn.Module, Recorder | None, Callable[[str], None], bool], Any]


def idle_modules(model: nn.Module, read: Collection[Any]) -> list[str]:
    """The outermost modules that have parameters or buffers none of which are in ``read``."""
    used, held = set(), set()
    for name in named_tensors(model):
        parts = name.split(".")[:-1]
        above = {".".join(parts[: k + 1]) for k in range(len(parts))}
        held |= above
        used |= above if name in read else set()
    idle = held - used
    return [n for n, _ in model.named_modules() if n in idle and n.rpartition(".")[0] not in idle]


def read_by(recorder: Recorder) -> set[Any]:
    """Names of the parameters and buffers that any forward so far read."""
    return {source for op in (*recorder.ops, *recorder.beside) for source in op.sources}


def look_aside(
    skeleton: Callable[[], nn.Module], recorder: Recorder, observe: Observe
) -> dict[str, str]:
    """Let the recorder's axes agree with what modules that did not run would ask of them.

    Args:
        skeleton: Makes a copy of the model that may be run.
        recorder: Of the forward on the example inputs.
        observe: Runs a model, told a recorder if any, whom to tell of each module that runs, and
            whether in training mode.

    Returns:
        The modules that are understood now, and how they were made to run.
    """
    double = skeleton()
    idle = idle_modules(double, read_by(recorder))
    pairs = _twins(double, idle) if idle else {}
    if pairs:
        seen = Recorder()
        with _fed_like_their_twins(double, pairs, seen):
            _merge(recorder, seen, observe, double, training=False)
    how = {n: f"like {pairs[n]}" for n in _found(idle, recorder, double)}
    idle = [n for n in idle if n not in how]
    if not idle:
        return how
    ran: set[str] = set()
    try:
        observe(skeleton(), None, ran.add, True)
    except Exception as error:  # noqa: BLE001 - many models need more than inputs to be trained
        log.info("training mode shows nothing: %s", error)
        return how
    if ran & set(idle):
        _merge(recorder, Recorder(), observe, skeleton(), training=True)
    return how | dict.fromkeys(_found(idle, recorder, double), "in training")


def _found(idle: list[str], recorder: Recorder, model: nn.Module) -> list[str]:
    still = set(idle_modules(model, read_by(recorder))) if idle else set()
    return [n for n in idle if n not in still]


def _merge(
    recorder: Recorder, seen: Recorder, observe: Observe, model: nn.Module, *, training: bool
) -> None:
    """Run a model whose parameters have the axes of the recorder's, and keep what that says."""
    try:
        observe(model, seen, lambda name: None, training)
    except Exception as error:  # noqa: BLE001 - nothing more is known then, which is said
        log.info("modules that did not run stay unknown: %s", error)
        return
    for op in seen.ops if training else ():
        op.reduced = []  # statistics of a batch are not what the pruned model is used with
    recorder.beside += seen.ops
    recorder.consumed |= seen.consumed
    recorder.roles += seen.roles


def _twins(model: nn.Module, idle: list[str]) -> dict[str, str]:
    """For each idle module of a list another of it that ran, of the same class and shapes."""
    modules = dict(model.named_modules())
    forms: dict[Any, list[str]] = {}
    for parent, several in modules.items():
        for leaf, module in several.named_children():
            if isinstance(several, nn.ModuleList | nn.ModuleDict):
                name = f"{parent}.{leaf}".lstrip(".")
                forms.setdefault((parent, _form(module)), []).append(name)
    result = {}
    for group in forms.values():
        ran = [n for n in group if n not in idle]
        if ran:
            result.update({n: ran[0] for n in group if n in idle})
    return result


def _form(module: nn.Module) -> tuple[Any, ...]:
    return type(module), *((n, tuple(t.shape)) for n, t in named_tensors(module).items())


@contextmanager
def _fed_like_their_twins(
    model: nn.Module, pairs: Mapping[str, str], recorder: Recorder
) -> Iterator[None]:
    """After a module ran, its idle twins run on the same inputs and give the same axes."""
    waiting = dict(pairs)

    def after(name: str, args: Any, kwargs: Any, output: Any) -> None:
        for idle in [n for n, twin in waiting.items() if twin == name]:
            del waiting[idle]
            other = model.get_submodule(idle)(*args, **kwargs)
            for ours, theirs in zip(tensors_in(other), tensors_in(output), strict=True):
                _same(recorder, ours, theirs)

    with ExitStack() as stack:
        for twin in dict.fromkeys(pairs.values()):
            handle = model.get_submodule(twin).register_forward_hook(
                lambda _, args, kwargs, out, twin=twin: after(twin, args, kwargs, out),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        yield


def _same(recorder: Recorder, a: Tensor, b: Tensor) -> None:
    for e, f in zip(recorder.axes_of(a), recorder.axes_of(b), strict=True):
        unify(e, f)
