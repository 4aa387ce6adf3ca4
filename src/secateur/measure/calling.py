"""Calling a model: example inputs of any structure, evaluation mode for a while, clear errors."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.errors import DataError


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call from a tensor, a tuple or list, or a dict."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def named_inputs(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The arguments of a call by the names that the model's forward gives them.

    Example:
        >>> list(named_inputs(nn.Linear(2, 1), torch.ones(1, 2)))
        ['input']
    """
    args, kwargs = as_call(inputs)
    try:
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself says what is wrong
        return kwargs
    return {**kwargs, **bound.arguments}


def device_of(model: nn.Module, default: torch.device | str = "cpu") -> torch.device:
    """The device of the model's first parameter or buffer."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device(default))


def to_device(value: Any, device: torch.device) -> Any:
    """The same structure with every tensor on ``device``; mappings come back as plain dicts."""
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, value)


def describe(value: Any) -> str:
    """Shapes and types of a value, for messages: ``(float32[2, 3], int64[2])``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    return type(value).__name__


def words(error: Exception) -> str:
    """An error's own words as part of a sentence."""
    return str(error).strip().rstrip(".") or type(error).__name__


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes and buffers are as they were."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:  # not .eval(), which exported programs refuse
            module.training = False
        with kept_buffers(*models), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def kept_buffers(*models: nn.Module) -> Iterator[None]:
    """Buffers are afterwards as they were, whatever forwards count or keep in them.

    One that is changed in place gets its values back, one that is replaced, added or removed is
    put back, and with it the module's plain attributes, which may say what is in it.
    """
    modules = {id(m): m for model in models for m in model.modules()}
    own = [(m, dict(m._buffers), dict(vars(m))) for m in modules.values()
           if not isinstance(m, torch.jit.ScriptModule)]  # fmt: skip
    tensors = {id(t): t for model in models for t in model.buffers()}
    values = [(t, t.clone()) for t in tensors.values() if _has_values(t)]
    try:
        yield
    finally:
        for module, buffers, attributes in own:
            there = module._buffers
            if there.keys() != buffers.keys() or any(there[n] is not t for n, t in buffers.items()):
                there.clear()
                there.update(buffers)
                for name, value in attributes.items():
                    if isinstance(value, _PLAIN):
                        vars(module)[name] = value
        for tensor, value in values:
            with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
                if tensor.shape != value.shape:
                    tensor.data = value
                elif not torch.equal(tensor, value):  # writing would break a backward pass
                    tensor.copy_(value)


_PLAIN = (bool, int, float, str, torch.Size, torch.device, torch.dtype, type(None))


def _has_values(tensor: Tensor) -> bool:
    made = not isinstance(tensor, nn.parameter.UninitializedBuffer)
    return made and not tensor.is_meta and tensor.layout == torch.strided


@contextmanager
def unfused() -> Iterator[None]:
    """Let ``nn.TransformerEncoder`` run layer by layer, so that modules and operators show."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run ``model`` on example inputs.

    Raises:
        DataError: the forward failed; the message holds the shapes and the model's own words.
    """
    args, kwargs = as_call(inputs)
    try:
        return model(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        where = device_of(model)
        devices = {t.device for t in (*args, *kwargs.values()) if isinstance(t, Tensor)} - {where}
        on = f" on {', '.join(map(str, devices))} (the model is on {where})" if devices else ""
        raise DataError(
            f"{type(model).__name__} could not be run on {describe(inputs)}{on}: {words(error)}. "
            "Give a tensor, a tuple of positional inputs or a dict of keyword inputs that "
            "model(...) accepts, on the model's device."
        ) from error
