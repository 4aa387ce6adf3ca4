"""Other tensors in the place of a model's, whatever their shapes; what was shared stays shared."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import StoreError
from secateur.graph.forward import named_tensors, uncopied

_MOST_OBJECTS = 50_000


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model that holds other parameters and buffers; the model itself is not touched.

    A parameter needs a gradient where the old one did. Wherever the model refers to a tensor (tied
    weights, lists of weights), the copy refers to the new one.

    Args:
        model: Any module, with values or on the meta device; its tensors are not copied.
        tensors: Name (as ``named_tensors`` gives it) -> the tensor that takes its place.

    Raises:
        StoreError: A model on the meta device keeps tensors elsewhere, which nothing can fill.
    """
    new = uncopied(model)
    empty = False
    for name, old in named_tensors(model).items():
        t = tensors[name]
        if isinstance(old, nn.Parameter):
            t = nn.Parameter(t, requires_grad=old.requires_grad and t.is_floating_point())
            t.__dict__.update(old.__dict__)
        new[id(old)] = t
        empty |= old.is_meta and not t.is_meta
    result = copy.deepcopy(model, new)
    if empty:
        for where, t in _elsewhere(result):
            if t.is_meta:
                raise StoreError(
                    f"{where} keeps a tensor that is neither parameter nor buffer, so no file "
                    "holds it, and it has no values: build the model on the CPU."
                )
    return result


def fill_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model other values of the same shapes, in place; parameters that it lacks are added.

    Args:
        model: Keeps its parameters and buffers as objects.
        tensors: Name (as ``named_tensors`` gives it) -> values.
    """
    own = named_tensors(model)
    with torch.no_grad():
        for name, t in tensors.items():
            if name in own:
                own[name].copy_(t)
            else:  # a bias that recovery added
                owner, leaf = owner_of(model, name)
                owner.register_parameter(leaf, nn.Parameter(t.clone(), t.is_floating_point()))


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and its name there."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def is_passing(model: nn.Module, name: str) -> bool:
    """True for a buffer that is no part of the model's state (``persistent=False``)."""
    owner, leaf = owner_of(model, name)
    return leaf in owner._non_persistent_buffers_set


def _elsewhere(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that modules keep in attributes, containers and closures, with the module's name."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = []
    for path, module in model.named_modules():
        here = f"{path or 'the model'} ({type(module).__name__})"
        stack += [(here, v) for v in (*vars(module).values(), type(module).forward)]
    while stack and len(seen) < _MOST_OBJECTS:
        where, value = stack.pop()
        if id(value) in seen or isinstance(value, nn.Module | type | types.ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield where, value
        else:
            stack += [(where, v) for v in _held(value)]


def _held(value: Any) -> list[Any]:
    """What a container, function or plain object holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return list(vars(value).values()) if hasattr(value, "__dict__") else []
