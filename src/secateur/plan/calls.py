"""What the arguments of a call must be once sizes have changed.

For every function whose integer arguments depend on widths there is one corrector. It gets the
arguments as the forward made them, the frozen axes that the call was recorded with, and the plan;
it returns the arguments that give the predicted result. Everything else in a forward is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.graph.classes import Axis, axis_mask
from secateur.graph.graph import FrozenCall
from secateur.plan.plan import Plan

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Corrector = Callable[["Recorded", tuple[Any, ...], dict[str, Any]], Arguments]


@dataclass(frozen=True)
class Recorded:
    """A recorded call seen through a plan."""

    call: FrozenCall
    plan: Plan

    def old(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(self.plan.counts(a)[0] for a in axes)

    def new(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(self.plan.counts(a)[1] for a in axes)

    def kept_before(self, axis: Axis, position: int) -> int:
        """How many of the first ``position`` entries of an axis stay."""
        if isinstance(axis, int):
            return position
        return self.plan.kept_before(axis, position)

    def groups(self, axis: Axis, count: int) -> int:
        """How many of ``count`` equal groups along an axis keep anything."""
        if isinstance(axis, int):
            return count
        mask = axis_mask(axis, self.plan.keep, self.plan.sizes)
        return int(mask.view(count, -1).any(1).sum())

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        return [self.new(a) for a in self.call.outputs]


_CORRECTORS: dict[str, Corrector] = {}


def corrects(*names: str) -> Callable[[Corrector], Corrector]:
    def register(f: Corrector) -> Corrector:
        for n in names:
            _CORRECTORS[n] = f
        return f

    return register


def corrected(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments that the call needs; equal ones where nothing has to change."""
    corrector = _CORRECTORS.get(recorded.call.function)
    return corrector(recorded, args, kwargs) if corrector is not None else (args, kwargs)


_BEYOND_SHAPE = {
    "__getitem__", "__setitem__", "narrow", "slice", "select", "pad", "constant_pad_nd",
    "scaled_dot_product_attention", "group_norm",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


def shape_is_enough(name: str) -> bool:
    """False for functions whose result can have the right shape and still be the wrong thing."""
    return name not in _BEYOND_SHAPE


def _sizes(args: tuple[Any, ...], first: int) -> tuple[list[Any], Callable[[list[int]], tuple]]:
    """Sizes given as varargs or as one sequence, and how to put them back the same way."""
    if len(args) > first and isinstance(args[first], tuple | list):
        kind = type(args[first])
        sizes = list(args[first])
        wrap = tuple if kind is not list else list
        return sizes, lambda new: (*args[:first], wrap(new), *args[first + 1 :])
    return list(args[first:]), lambda new: (*args[:first], *new)


def _resized(recorded: Recorded, sizes: list[Any], output: Sequence[Axis]) -> list[Any]:
    """The given sizes with those that the plan changes put right; others stay as computed."""
    new = recorded.new(output)
    if len(sizes) != len(new):
        return sizes
    # Sizes were right in the dense run, so whatever differs from the prediction now is wrong; a
    # size that is read off a pruned input may be wrong even where the plan changes nothing.
    result = [s if s in (n, -1) else n for s, n in zip(sizes, new, strict=True)]
    wildcards = [i for i, s in enumerate(sizes) if s == -1]
    fixed = math.prod(s for i, s in enumerate(result) if i not in wildcards)
    if wildcards and fixed and math.prod(new) % fixed == 0:
        result[wildcards[0]] = -1  # it will come out right by itself
    return result


@corrects("view", "reshape", "zeros", "ones", "empty", "full", "rand", "randn", "expand")
@corrects("new_zeros", "new_ones", "new_empty", "new_full", "broadcast_to", "view_copy")
def sizes(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    first = (
        0 if recorded.call.function in ("zeros", "ones", "empty", "full", "rand", "randn") else 1
    )
    for key in ("size", "shape"):
        if key in kwargs:
            new = _resized(recorded, list(kwargs[key]), recorded.call.outputs[0])
            return args, {**kwargs, key: tuple(new)}
    if len(args) > first and isinstance(args[first], torch.dtype):
        return args, kwargs
    given, put = _sizes(args, first)
    output = recorded.call.outputs[0]
    if recorded.call.function == "expand":
        # -1 means "as it is" here, and stays right.
        shape = recorded.new(output)
        pairs = zip(given, shape, strict=True) if len(given) == len(shape) else ()
        return put([s if s in (n, -1) else n for s, n in pairs] or given), kwargs
    return put(_resized(recorded, given, output)), kwargs


@corrects("unflatten")
def unflatten(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    output = recorded.call.outputs[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = kwargs.get("sizes", args[2] if len(args) > 2 else ())
    dim = dim % len(recorded.call.inputs[0])
    new = _resized(recorded, list(sizes), output[dim : dim + len(sizes)])
    if "sizes" in kwargs:
        return args, {**kwargs, "sizes": tuple(new)}
    return (*args[:2], tuple(new), *args[3:]), kwargs


@corrects("repeat", "tile", "repeat_interleave")
def repeats(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    output, source = recorded.call.outputs[0], recorded.call.inputs[0]
    if recorded.call.function == "repeat_interleave":
        times = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
        if not isinstance(times, int) or dim is None or len(output) != len(source):
            return args, kwargs
        new = recorded.new(output)[dim] // max(1, recorded.new(source)[dim])
        if "repeats" in kwargs:
            return args, {**kwargs, "repeats": new}
        return (args[0], new, *args[2:]), kwargs
    given, put = _sizes(args, 1)
    offset = len(output) - len(source)
    new_in = (*[1] * offset, *recorded.new(source))
    new_out = recorded.new(output)
    if len(given) != len(new_out):
        return args, kwargs
    return put([o // max(1, i) for o, i in zip(new_out, new_in, strict=True)]), kwargs


@corrects("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def pieces(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    position = 2
    dim = kwargs.get("dim", args[position] if len(args) > position else 0)
    dim = dim % len(recorded.call.inputs[0])
    new = [recorded.new(a)[dim] for a in recorded.call.outputs]
    if len(set(new)) == 1:
        # Equal pieces can be said with the number or the size that was given before.
        given = args[1] if len(args) > 1 else next(iter(kwargs.values()))
        if "chunk" in recorded.call.function:
            return args, kwargs
        if isinstance(given, int) and recorded.call.function == "split":
            new = new[0]  # type: ignore[assignment]
    for key in ("split_size", "split_size_or_sections", "split_sizes", "chunks"):
        if key in kwargs:
            return args, {**kwargs, key: new}
    return (args[0], new, *args[2:]), kwargs


@corrects("narrow")
def narrow(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    names = ["self", "dim", "start", "length"]
    given = dict(zip(names, args, strict=False)) | kwargs
    dim = given["dim"] % len(recorded.call.inputs[0])
    axis = recorded.call.inputs[0][dim]
    old = _old_int(recorded, "start", 2)
    # A start that is a tensor is data, and data only choose along axes that stay whole.
    start = recorded.kept_before(axis, old) if isinstance(old, int) else given["start"]
    length = recorded.new(recorded.call.outputs[0])[dim]
    if (start, length) == (given["start"], given["length"]) or not isinstance(old, int):
        return args, kwargs
    return (args[0], given["dim"], start, length), {}


def _old_int(recorded: Recorded, name: str, position: int) -> int:
    call = recorded.call
    return call.kwargs[name] if name in call.kwargs else call.args[position]


@corrects("__getitem__", "__setitem__")
def getitem(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Slices and single positions move with what is kept before them."""
    axes = recorded.call.inputs[0]
    old_index, index = recorded.call.args[1], args[1]
    single = not isinstance(index, tuple)
    items = [index] if single else list(index)
    old_items = [old_index] if not isinstance(old_index, tuple) else list(old_index)
    if len(items) != len(old_items):
        return args, kwargs
    takes = [_takes(x) for x in items]
    axis = 0
    result = []
    for item, old, width in zip(items, old_items, takes, strict=True):
        if item is Ellipsis:
            axis = len(axes) - sum(takes[items.index(Ellipsis) + 1 :])
            result.append(item)
            continue
        if width == 1 and axis < len(axes):
            result.append(_moved(recorded, axes[axis], item, old))
        else:
            result.append(item)
        axis += width
    new = result[0] if single else tuple(result)
    return (args[0], new, *args[2:]), kwargs


@corrects("slice")
def slice_(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """``aten.slice``, as exported graphs say it: (self, dim, start, end, step)."""
    old, given = (list(a) + [None] * (5 - len(a)) for a in (recorded.call.args, args))
    axis = recorded.call.inputs[0][(given[1] or 0) % len(recorded.call.inputs[0])]
    moved = _moved(recorded, axis, slice(*given[2:5]), slice(*old[2:5]))
    new = (*given[:2], moved.start, moved.stop, given[4] or 1)
    return new[: max(len(args), 4)], kwargs


@corrects("select")
def select(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """``aten.select`` or ``Tensor.select``: (self, dim, index)."""
    if len(args) < 3:
        return args, kwargs
    axis = recorded.call.inputs[0][args[1] % len(recorded.call.inputs[0])]
    return (*args[:2], _moved(recorded, axis, args[2], recorded.call.args[2])), kwargs


def _takes(item: Any) -> int:
    """How many axes an index item uses up."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, Tensor) and item.dtype == torch.bool:
        return item.dim()
    return 1


def _moved(recorded: Recorded, axis: Axis, item: Any, old: Any) -> Any:
    n, m = recorded.old([axis])[0], recorded.new([axis])[0]

    def position(p: int, now: Any) -> Any:
        wanted = recorded.kept_before(axis, p + n if p < 0 else min(p, n))
        given = now + m if isinstance(now, int) and now < 0 else now
        past_the_end = p >= n and isinstance(now, int) and now >= m
        return now if given == wanted or past_the_end else wanted

    if isinstance(old, slice) and isinstance(item, slice):
        if old.step not in (None, 1):
            return item
        start = item.start if old.start is None else position(old.start, item.start)
        stop = item.stop if old.stop is None else position(old.stop, item.stop)
        return slice(start, stop, item.step)
    if isinstance(old, int) and not isinstance(old, bool):
        return position(old, item)
    return item


@corrects("scaled_dot_product_attention")
def attention(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The softmax scale of the dense model, now said explicitly."""
    old = recorded.old(recorded.call.inputs[0])[-1]
    new = recorded.new(recorded.call.inputs[0])[-1]
    if old == new or kwargs.get("scale") is not None:
        return args, kwargs
    return args, {**kwargs, "scale": old**-0.5}


@corrects("layer_norm", "rms_norm")
def normalized_shape(
    recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    given = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    dims = 1 if isinstance(given, int) else len(given)
    new = tuple(recorded.new(recorded.call.inputs[0])[-dims:])
    if "normalized_shape" in kwargs:
        return args, {**kwargs, "normalized_shape": new}
    return (args[0], new, *args[2:]), kwargs


@corrects("group_norm")
def num_groups(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    old = _old_int(recorded, "num_groups", 1)
    new = recorded.groups(recorded.call.inputs[0][1], old)
    if "num_groups" in kwargs:
        return args, {**kwargs, "num_groups": new}
    return (args[0], new, *args[2:]), kwargs


_CONVOLUTIONS = {
    **{f"conv{d}d": 6 for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": 6 for d in (1, 2, 3)},
}


@corrects(*_CONVOLUTIONS)
def convolution(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    call = recorded.call
    old = call.kwargs.get("groups", call.args[6] if len(call.args) > 6 else 1)
    if old == 1:
        return args, kwargs
    channels = len(call.inputs[0]) - (len(call.inputs[1]) - 2) - 1
    new = recorded.groups(call.inputs[0][channels], old)
    if len(args) > 6:
        return (*args[:6], new, *args[7:]), kwargs
    return args, {**kwargs, "groups": new}


@corrects("pad", "constant_pad_nd")
def pad(recorded: Recorded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Of padding zeros along a prunable axis only those stay that the next layer still reads."""
    output = recorded.call.outputs[0]
    amounts = list(kwargs["pad"] if "pad" in kwargs else args[1])
    old = list(
        recorded.call.kwargs["pad"] if "pad" in recorded.call.kwargs else recorded.call.args[1]
    )
    for i in range(len(old) // 2):
        axis = output[len(output) - 1 - i]
        if isinstance(axis, int) or old[2 * i] < 0 or old[2 * i + 1] < 0:
            continue
        n, m = recorded.old([axis])[0], recorded.new([axis])[0]
        amounts[2 * i] = recorded.kept_before(axis, old[2 * i])
        amounts[2 * i + 1] = m - recorded.kept_before(axis, n - old[2 * i + 1])
    kind = type(recorded.call.args[1]) if len(recorded.call.args) > 1 else tuple
    if "pad" in kwargs:
        return args, {**kwargs, "pad": kind(amounts)}
    return (args[0], kind(amounts), *args[2:]), kwargs
