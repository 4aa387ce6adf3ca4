"""From a model and example inputs to its graph of unit classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.graph.aside import look_aside, read_by
from secateur.graph.axes import Atom, lock, one
from secateur.graph.capture import Calls, Recorder
from secateur.graph.forward import (
    Scopes,
    call_arguments,
    module_hooks,
    named_tensors,
    run,
    skeleton,
    tensors_in,
    tensors_of_output,
    uncollected,
)
from secateur.graph.freeze import freeze
from secateur.graph.graph import Graph
from secateur.graph.kept import Kept, forget, kept_already, kept_by_forward
from secateur.graph.rules import RuleError

log = logging.getLogger(__name__)


_WRAPPERS = {
    "OptimizedModule": "the model that was given to torch.compile (model._orig_mod)",
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
}


def trace(model: nn.Module, example_inputs: Any, *, on_data: bool = False) -> Graph:
    """Trace a model into its graph of unit classes.

    The model runs once on fake tensors, which hold no data: no memory is used, the model is not
    changed, and it may live on the meta device. If its control flow reads data, it runs on the real
    tensors instead.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs. A batch
            of two shows more than a batch of one.
        on_data: Run on the real tensors from the start.

    Returns:
        The graph. ``print(graph)`` shows its classes.

    Raises:
        TraceError: The model does not run on these inputs; the message names the module.

    Example:
        >>> import torch, secateur as sec
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(c.name, c.size) for c in sec.trace(net, torch.randn(2, 4)).free.values()]
        [('0', 8)]
    """
    _check_inputs(model, example_inputs)
    with uncollected():
        return _traced(model, example_inputs, on_data=on_data)


def _traced(model: nn.Module, example_inputs: Any, *, on_data: bool) -> Graph:
    try:
        recorder, atoms, aside, kept = _record(model, example_inputs, fake=not on_data)
    except TraceError:
        raise
    except Exception as error:
        if on_data or any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise _explained(example_inputs, error) from error
        log.info("tracing on real tensors, since fake ones gave %s", type(error).__name__)
        on_data = True
        try:
            recorder, atoms, aside, kept = _record(model, example_inputs, fake=False)
        except Exception as second:
            raise _explained(example_inputs, second) from second
    graph = freeze(model, example_inputs, recorder, atoms, on_data=on_data, aside=aside)
    return replace(graph, kept=kept)


def _check_inputs(model: nn.Module, example_inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for wrapper, inside in _WRAPPERS.items():
        if type(model).__name__ == wrapper:
            raise TraceError(f"{wrapper} hides the forward: pass {inside} and wrap what comes out")
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise TraceError(
                f"{name or type(model).__name__} is compiled, which hides its forward: prune the "
                "model first and compile what comes out"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "a TorchScript module has no Python forward: pass the model it was made from"
        )
    if not isinstance(example_inputs, Tensor | tuple | list | dict) and not hasattr(
        example_inputs, "keys"
    ):
        raise TraceError(
            "example_inputs must be a tensor, a tuple of positional inputs or a dict of keyword "
            f"inputs, not {type(example_inputs).__name__}"
        )
    uninitialized = [
        n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)
    ]
    if uninitialized:
        raise TraceError(
            f"{uninitialized[0]} has no shape yet (a lazy module): run the model once first"
        )
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise TraceError(
                    f"{f'{name}.{key}'.lstrip('.')} is computed anew before each forward, by "
                    "torch.nn.utils.prune, weight_norm or the like: make it a plain parameter "
                    f"with torch.nn.utils.prune.remove(module, {key!r}) or remove_weight_norm, or "
                    "use torch.nn.utils.parametrizations"
                )
    for t in tensors_in(call_arguments(example_inputs))[:1]:
        if t.dim() and not t.shape[0]:
            raise TraceError(
                f"example_inputs of shape {tuple(t.shape)} hold no example: what meets in "
                "a forward shows only where there is something, so pass a batch of two"
            )
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    inputs = {t.device for t in tensors_in(call_arguments(example_inputs))}
    if len(devices) == 1 and inputs and "meta" not in {d.type for d in devices | inputs}:
        strange = inputs - devices
        if strange:
            raise TraceError(
                f"the model is on {next(iter(devices))} but example_inputs on "
                f"{next(iter(strange))}: move one of them"
            )


def _record(
    model: nn.Module, example_inputs: Any, *, fake: bool
) -> tuple[Recorder, dict[str, list[Atom]], dict[str, str], Kept]:
    """The forward as recorded, axes of parameters and buffers, what else was looked at or kept."""
    atoms: dict[str, list[Atom]] = {}
    names = named_tensors(model)

    def observe(
        double: nn.Module, recorder: Recorder | None, entered: Callable[[str], None], training: bool
    ) -> None:
        def on_tensor(name: str | None, tensor: Tensor) -> None:
            if recorder is None:
                return
            fresh = "model input" if name is None else None
            axes = [Atom(n, lock=fresh) if n != 1 else one() for n in tensor.shape]
            if name is None:
                recorder.set(tensor, axes)
                return
            recorder.set(tensor, atoms.setdefault(name, axes))
            recorder.origin[id(tensor)] = tuple((name, i) for i in range(tensor.dim()))
            recorder.maker[id(tensor)] = name
            real = names[name]
            if not real.is_floating_point() and real.device.type != "meta":
                recorder.values[id(tensor)] = real.detach()

        scopes = Scopes() if recorder is None else recorder.scopes

        def enter(name: str) -> None:
            entered(name)
            scopes.enter(name)

        leave = scopes.leave if recorder is None else recorder.leave
        modes = [] if recorder is None else [recorder, Calls(recorder)]
        with module_hooks(double, enter, leave):
            output = run(
                double, example_inputs, modes, fake=fake, on_tensor=on_tensor, training=training
            )
        if recorder is not None:
            _mark_outputs(recorder, output)

    try:
        kept = kept_already(model)
        double = forget(skeleton(model), kept)
    except Exception as error:
        raise TraceError(
            f"this {type(model).__name__} cannot be copied, which tracing needs: {error}. Take the "
            "attribute that holds it away while the model is pruned"
        ) from error
    recorder = Recorder()
    recorder.attributes = _plain_tensors(double)
    try:
        observe(double, recorder, lambda name: None, False)
    except Exception as error:
        error.__dict__["secateur_where"] = recorder.failed_in
        raise
    kept = kept_by_forward(model, double) | kept
    _lock_scripted(model, atoms)
    aside = look_aside(lambda: forget(skeleton(model), kept), recorder, observe)
    read = read_by(recorder)
    for name, axes in atoms.items():
        for e in axes if name not in read else ():
            lock(e, "not used by this forward")  # what it would have to agree with is not known
    return recorder, atoms, aside, kept


def _plain_tensors(model: nn.Module) -> dict[int, str]:
    """The tensors that modules hold as mere attributes: surgery does not reach them."""
    return {
        id(value): f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _lock_scripted(model: nn.Module, atoms: dict[str, list[Atom]]) -> None:
    """What a submodule in TorchScript holds stays: nothing in its code could be corrected."""
    compiled = [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    for name, axes in atoms.items():
        owner = next((n for n in compiled if name.startswith(f"{n}.")), None)
        for e in axes if owner is not None else ():
            lock(e, f"TorchScript (give the model the module that it was made from) in {owner}")


def _mark_outputs(recorder: Recorder, output: Any) -> None:
    """Lock every axis of what the model returns, and of nothing else."""
    tensors = tensors_of_output(output)
    if not tensors:
        raise TraceError(
            f"no tensor can be found in the {type(output).__name__} that the model's forward "
            "returns, so its width could not be protected: return tensors, a tuple, list or dict "
            "of them, or an object that has them as attributes"
        )
    for t in tensors:
        for e in recorder.axes_of(t):
            lock(e, "model output")


def _explained(example_inputs: Any, error: Exception) -> TraceError:
    if isinstance(error, RuleError):
        return TraceError(str(error))
    where = getattr(error, "secateur_where", None) or "the model's forward"
    shapes = [tuple(t.shape) for t in tensors_in(call_arguments(example_inputs))]
    return TraceError(
        f"the model does not run on example_inputs of shapes {shapes}: {where} raised "
        f"{type(error).__name__}: {error}. Pass inputs that model(*inputs) accepts; a dict is "
        "passed by keyword."
    )
