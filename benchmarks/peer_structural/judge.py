"""Is a pruned model right? The same naive check for every library.

Which positions of each tensor stay is read off the pruned model itself: right before the library
removes anything, every value is replaced by its own place, so what is left says where it came from.
Then the smaller model must give what the dense one gives with the other positions set to zero.
"""

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.coverage.oracle import NEARLY_ZERO, TOLERANCE, NeutralNorms, difference, outputs
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Places = dict[str, Tensor]
LEFT = 0.98  # of the parameters: with more left, nothing worth the name was pruned


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


@torch.no_grad()
def label(model: nn.Module) -> None:
    """Replace every value by its place in its tensor: exact in float64 up to 2 ** 53."""
    seen: set[int] = set()
    for value in tensors(model).values():
        if id(value) not in seen:
            seen.add(id(value))
            places = torch.arange(value.numel(), dtype=torch.float64).reshape(value.shape)
            value.data = places


@torch.no_grad()
def fill(model: nn.Module, dense: nn.Module) -> Places:
    """Put the dense model's values at the places that are left, in place; returns the places.

    Raises:
        KeyError: The pruned model has a tensor that the dense one lacks.
    """
    values = tensors(dense)
    places: Places = {}
    done: dict[int, str] = {}
    for name, value in tensors(model).items():
        if id(value) not in done:
            done[id(value)] = name
            places[name] = value.detach().round().long()
            value.data = values[name].detach().flatten()[places[name]].to(values[name].dtype)
        else:
            places[name] = places[done[id(value)]]
    return places


@torch.no_grad()
def zeroed(dense: nn.Module, places: Places) -> nn.Module:
    """The dense model with everything but these places set to zero."""
    model = copy.deepcopy(dense)
    for name, value in tensors(model).items():
        stays = torch.zeros(value.numel(), dtype=torch.bool)
        if name in places:
            stays[places[name].flatten()] = True
            nothing = NEARLY_ZERO if value.is_floating_point() else 0
            value.masked_fill_(~stays.view(value.shape), nothing)
    return model


def opened(function: FunctionType) -> FunctionType:
    """A copy of one of torch's Python functions that lets a mode see the calls inside it."""
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    return FunctionType(function.__code__, names, argdefs=function.__defaults__)


_ATTENTION = opened(F.multi_head_attention_forward)


class Neutral(NeutralNorms):
    """Also makes softmax act element by element, a mean a sum, and attention's scale constant.

    What remains is linear or pointwise wherever units may go, so removing must equal zeroing.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("softmax", "log_softmax"):
            return torch.tanh(args[0] if args else kwargs["input"])
        if func is F.scaled_dot_product_attention:
            return func(*args, **(kwargs | {"scale": 1.0}))
        if getattr(func, "__name__", "") == "mean" and (len(args) > 1 or "dim" in kwargs):
            return torch.sum(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _ATTENTION(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def neutral_difference(
    reference: nn.Module, small: nn.Module, args: tuple[Any, ...], kwargs: dict, mode: type
) -> float:
    """Difference of the outputs under a neutral mode, in float64, as values grow without norms."""
    pair = []
    for model in (reference, small):
        try:
            with mode():
                wide, inputs = copy.deepcopy(model).double(), tree_map(doubled, (args, kwargs))
                pair.append(outputs(wide, *inputs))
        except RuntimeError:  # the forward itself asks for float32
            with mode():
                pair.append(outputs(model, args, kwargs))
    return difference(*pair)


def doubled(value: Any) -> Any:
    """A float32 tensor as float64; anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def judge(
    dense: nn.Module, small: nn.Module, places: Places, args: tuple[Any, ...], kwargs: dict
) -> dict[str, Any]:
    """Run the pruned model and compare it with the zeroed one.

    Returns:
        ``left`` (share of the parameters), ``shapes`` (of the outputs as before), ``changed`` (from
        the dense output), ``error``, ``neutral`` (with norms, or also softmax and attention
        scales, made neutral) and ``verdict``: right, wrong, or idle (nothing pruned).

    Raises:
        Exception: Whatever the pruned model's forward raises.
    """
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, dense)]
    left = sizes[0] / max(sizes[1], 1)
    before, after = outputs(dense, args, kwargs), outputs(small, args, kwargs)
    facts: dict[str, Any] = {
        "left": left,
        "shapes": [t.shape for t in before] == [t.shape for t in after],
        "changed": difference(before, after),
    }
    reference = zeroed(dense, places)
    facts["error"] = difference(outputs(reference, args, kwargs), after)
    if facts["error"] >= TOLERANCE:
        facts["neutral"] = min(
            neutral_difference(reference, small, args, kwargs, mode)
            for mode in (NeutralNorms, Neutral)
        )
    right = min(facts["error"], facts.get("neutral", facts["error"])) < TOLERANCE
    idle = left > LEFT or facts["changed"] < TOLERANCE
    facts["verdict"] = "wrong" if not right else "idle" if idle else "right"
    return facts
