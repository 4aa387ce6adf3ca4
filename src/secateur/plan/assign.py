"""Put other tensors in the place of a model's, of any shapes; what was shared stays shared."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.errors import StoreError
from secateur.graph.forward import named_tensors


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give every named parameter and buffer of ``model`` a new tensor.

    Parameters become new ``Parameter`` objects that need a gradient where the old ones did, so a
    model that shares the old ones is not touched.

    Args:
        model: Changed in place.
        tensors: Name (as ``named_tensors`` gives it) -> the tensor that takes its place.

    Raises:
        StoreError: The model keeps a tensor without values elsewhere, which nothing can fill.
    """
    new: dict[int, Tensor] = {}
    for name, old in named_tensors(model).items():
        t = tensors[name]
        if isinstance(old, nn.Parameter):
            t = nn.Parameter(t, requires_grad=old.requires_grad and t.is_floating_point())
            t.__dict__.update(old.__dict__)
        new[id(old)] = t
    for path, module in model.named_modules():
        for leaf, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None and id(value) in new:
                setattr(module, leaf, new[id(value)])
        for leaf, value in list(vars(module).items()):
            if isinstance(value, Tensor) and id(value) in new:
                vars(module)[leaf] = new[id(value)]
            elif isinstance(value, Tensor) and value.is_meta:
                raise StoreError(
                    f"{path or 'the model'} keeps a tensor {leaf!r} that is neither parameter nor "
                    "buffer, so no file holds it, and it has no values: build the model on the CPU."
                )


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and its name there."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def is_passing(model: nn.Module, name: str) -> bool:
    """True for a buffer that is no part of the model's state (``persistent=False``)."""
    owner, leaf = owner_of(model, name)
    return leaf in owner._non_persistent_buffers_set
