"""The naive check: zero what goes in the dense model, run it, compare with the pruned model.

It knows nothing of graphs: from the plan it takes only which positions of which tensors stay.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-4
# Nothing beside what stays, yet its length is not 0: weight norm divides a removed row by it.
NEARLY_ZERO = 1e-18
Kept = tuple[tuple[int, ...], Tensor]


@torch.no_grad()
def masked(model: nn.Module, kept: Mapping[str, Sequence[Kept]]) -> nn.Module:
    """Copy the model and zero every position of every tensor that does not stay.

    Args:
        model: The dense model.
        kept: Name of a parameter or buffer -> dimensions, and a bool mask over them of what stays.
    """
    copy = deepcopy(model)
    tensors = dict(copy.named_parameters(remove_duplicate=False))
    tensors |= dict(copy.named_buffers(remove_duplicate=False))
    for name, choices in kept.items():
        for dims, stays in choices:
            tensor = tensors[name]
            zero = NEARLY_ZERO if tensor.is_floating_point() else 0
            tensor.movedim(dims, tuple(range(len(dims))))[~stays] = zero
    return copy


@torch.no_grad()
def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors of the model's output; drawn random numbers are the same at every call."""
    torch.manual_seed(1)
    return list(tensors_of(model(*deepcopy(args), **deepcopy(kwargs))))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Tensors inside nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))


def difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest relative error over the tensors, |a - b| / |a| in the Euclidean norm.

    Infinite when shapes, integers or the places of non-finite values differ.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not a.is_floating_point() and not a.is_complex():
            if not torch.equal(a, b):
                return float("inf")
            continue
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf")
        a, b = a[finite].double(), b[finite].double()
        if a.numel():
            worst = max(worst, float((a - b).norm() / a.norm().clamp_min(1e-12)))
    return worst


class NeutralNorms(TorchFunctionMode):
    """Takes the statistics out of normalisation, so that removing and zeroing become the same.

    Layer, group, RMS and instance norm only apply their weight and bias; a kept-dimension mean or
    variance, from which hand-written norms are made, is 1. Wrong indices still show.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (F.layer_norm, F.rms_norm):
            return self.scaled(*args[:1], *args[2:4], kwargs, from_right=True)
        if func is F.group_norm:
            return self.scaled(*args[:1], *args[2:4], kwargs, from_right=False)
        if func is F.instance_norm:
            return self.scaled(args[0], *args[3:5], kwargs, from_right=False)
        result = func(*args, **kwargs)
        if name in ("mean", "var", "std", "norm", "vector_norm") and isinstance(result, Tensor):
            whole = next((a for a in args if isinstance(a, Tensor)), kwargs.get("input"))
            if whole is not None and result.dim() == whole.dim():
                return torch.ones_like(result)
        return result

    @staticmethod
    def scaled(x: Tensor, *rest: Any, from_right: bool) -> Tensor:
        *given, kwargs = rest
        weight = given[0] if given else kwargs.get("weight")
        bias = given[1] if len(given) > 1 else kwargs.get("bias")
        shape = (-1,) if from_right else (-1, *[1] * (x.dim() - 2))
        for vector, combine in ((weight, torch.mul), (bias, torch.add)):
            if vector is not None:
                view = vector if from_right else vector.view(shape)
                x = combine(x, view)
        return x
