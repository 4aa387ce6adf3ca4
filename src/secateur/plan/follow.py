"""Replay a model's forward with the planned shapes and write down which arguments are wrong.

The dense run recorded every call that the forward made, with the axes of what it read and made, so
the plan predicts the shape of every result. Here the pruned shapes flow through the same forward
(without data, or on real slices where the control flow reads data). A call whose own arguments give
the predicted result is left alone; any other is made with the arguments that ``calls`` works out,
and what had to be replaced is noted as an edit. One pass finds everything.

``settled`` then makes the edits say how their calls look, so that a forward which takes another
path finds them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from secateur.graph.capture import TENSOR
from secateur.graph.classes import Axis
from secateur.graph.forward import (
    Scopes,
    arguments_in,
    function_name,
    is_quiet,
    module_hooks,
    run,
)
from secateur.graph.forward import skeleton as copied
from secateur.graph.graph import FrozenCall, Graph
from secateur.graph.remembered import called
from secateur.plan.attention import NarrowAttention
from secateur.plan.calls import Recorded, corrected, shape_is_enough
from secateur.plan.mend import looks_like, number, shapes_in
from secateur.plan.numbers import with_old_numbers
from secateur.plan.plan import Edit, Plan
from secateur.plan.surgery import narrowed

_LOOKAHEAD = 60
Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Seen:
    """A call of the replay: as its module made it, and as it was after the edits.

    ``scopes`` are the modules that were running, outermost first, each with something that is this
    run of it.
    """

    function: str
    scopes: tuple[tuple[str, Counter[str]], ...]
    shapes: list[tuple[Any, ...]]
    given: tuple[tuple[Any, ...], dict[str, Any]]
    edited: tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Outcome:
    """What a replay found: the edits needed, and where it stopped, if it did.

    ``strange`` counts the calls that the dense forward did not make: it took another branch;
    ``branched`` is the recorded call that was next where a call first came or was left out. The
    ``call`` of an edit is the number of a call in ``seen`` until the edits are settled.
    """

    edits: list[Edit] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    strange: int = 0
    branched: FrozenCall | None = None
    failed: FrozenCall | None = None
    module: str = ""
    error: str = ""
    reached: int = 0

    @property
    def ok(self) -> bool:
        return not self.error


class Mismatch(Exception):  # noqa: N818 - control flow within this file
    """A call cannot be made to give the predicted shapes."""

    def __init__(self, call: FrozenCall, why: str) -> None:
        super().__init__(why)
        self.call = call


class Follow(TorchFunctionMode):
    def __init__(
        self, plan: Plan, calls: Sequence[FrozenCall], scopes: Scopes, replaced: set[str]
    ) -> None:
        super().__init__()
        self.plan = plan
        self.replaced = replaced
        self.calls = calls
        self.scopes = scopes
        self.position = 0
        self.strange = 0
        self.branched: FrozenCall | None = None
        self.edits: list[Edit] = []
        self.seen: list[Seen] = []
        # Worked out before the forward, since its modes would see every step of it.
        for axes in (a for c in calls for a in (*c.inputs, *c.outputs)):
            for axis in axes:
                plan.counts(axis)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if is_quiet(name):
            return func(*args, **kwargs)
        scopes = self.scopes.called(name)
        module = scopes[-1][0] if scopes else ""
        ranks = [t.dim() for t in arguments_in((args, kwargs)) if isinstance(t, Tensor)]
        call = self._recorded(name, module, ranks)
        if call is None:
            self.strange += 1
            if module not in self.replaced:
                self.branches()
            self._see(name, (args, kwargs), (args, kwargs))
            return func(*args, **kwargs)
        recorded = Recorded(call, self.plan)
        outputs = recorded.outputs
        fixed = with_old_numbers(call, args, kwargs)
        if shape_is_enough(name):
            # The forward's own sizes may already be right, or right said differently (-1, chunk).
            result = _as_decided(call, outputs, args, self._try(func, *fixed))
            if shapes_of(result) == outputs:
                self._note(name, call, (args, kwargs), fixed)
                return result
        with unset_fake_temporarily():  # the plan's masks are real tensors
            fixed_args, fixed_kwargs = corrected(recorded, *fixed)
        changed = self._note(name, call, (args, kwargs), (fixed_args, fixed_kwargs))
        function = torch.split if name.endswith("chunk") and changed else func
        try:
            result = called(function, fixed_args, fixed_kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise Mismatch(call, f"{name} raised {type(error).__name__}: {error}") from error
        result = _as_decided(call, outputs, args, result)
        got = shapes_of(result)
        if got != outputs:
            raise Mismatch(call, f"{name} gives {got} where the plan needs {outputs}")
        return result

    def _try(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return called(func, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            return None

    def _recorded(self, name: str, module: str, ranks: list[int]) -> FrozenCall | None:
        """The recorded call that this one is; None if the dense forward did not make it.

        A forward may branch on sizes (repeat the keys where values have another width), so a call
        that takes tensors of other ranks is another call.
        """
        for k in range(self.position, min(len(self.calls), self.position + _LOOKAHEAD)):
            call = self.calls[k]
            # What a chunk became in a model that was mended before is a split.
            known = call.function.replace("split", "chunk") == name.replace("split", "chunk")
            same = known and call.module == module
            if same and [len(axes) for axes in call.inputs] == ranks:
                if k > self.position:
                    self.branches()
                self.position = k + 1
                return call
        return None

    def branches(self) -> None:
        """Remember the call that was next, the first time that the forward goes another way."""
        if self.branched is None and self.calls:
            self.branched = self.calls[min(self.position, len(self.calls) - 1)]

    def _see(self, name: str, given: Any, edited: Any) -> None:
        scopes = tuple(zip(self.scopes.stack, self.scopes.entered, strict=True))
        bare, after = _bare(given), _bare(edited)
        self.seen.append(Seen(name, scopes, shapes_in(*given), bare, after))

    def _note(self, name: str, call: FrozenCall, given: Any, wanted: Any) -> bool:
        """Write down what has to be replaced in a call; True if that is anything."""
        changes = differences(given, wanted)
        self._see(name, given, wanted)
        if not changes:
            return False
        operands = tuple(
            tuple(None if _varies(e) else self.plan.counts(e)[1] for e in axes)
            for axes in call.inputs
            if axes
        )
        for path, old, new in changes:
            old, new = (x.item() if isinstance(x, np.generic) else number(x) for x in (old, new))
            value, varies = new, False
            scalable = isinstance(old, int) and isinstance(new, int) and old > 0 and new > 0
            if scalable and name in _SCALED:
                value = {"times": _reduced(new, old)}
                sizes = [e for axes in call.outputs for e in axes if self.plan.counts(e)[1] == new]
                varies = any(_varies(e) for e in sizes)
            seen = len(self.seen) - 1
            self.edits.append(Edit(call.module, path, value, old, name, seen, operands, varies))
        return True


_SCALED = {"view", "reshape", "expand", "unflatten", "new_zeros", "zeros"}


def _varies(axis: Axis) -> bool:
    """True if some of an axis is of no class: it may be the batch or the sequence."""
    return any(isinstance(e, int) for e in _parts(axis))


def _parts(axis: Axis) -> Iterator[Axis]:
    if isinstance(axis, tuple) and axis[0] in ("prod", "sum"):
        for e in axis[1:]:
            yield from _parts(e)
    elif isinstance(axis, tuple) and axis[0] == "take":
        yield from _parts(axis[1])
    else:
        yield axis


def _bare(value: Any) -> Any:
    """Arguments without the data of tensors, but for single numbers."""
    if isinstance(value, tuple | list):
        return tuple(_bare(v) for v in value)
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(_bare(value.start), _bare(value.stop), _bare(value.step))
    value = number(value)
    return TENSOR if isinstance(value, Tensor) else value


def settled(outcome: Outcome) -> list[Edit]:
    """The edits in terms of what their calls look like.

    If all calls of a module that look alike need the same value, it is used wherever a call looks
    like that, as often as it comes; otherwise they are told apart by their order.
    """
    seen = outcome.seen
    wanted: dict[tuple[int, str], Any] = {(e.call or 0, e.name): e.value for e in outcome.edits}
    result: list[Edit] = []
    for edit in outcome.edits:
        place = edit.call or 0
        runs = {
            i: next((run for module, run in s.scopes if module == edit.module), None)
            for i, s in enumerate(seen)
            if s.function == edit.function
        }
        alike = [i for i, run in runs.items() if run is not None and _alike(edit, seen[i])]
        if all(wanted.get((i, edit.name)) == edit.value for i in alike):
            edit = replace(edit, call=0)
        else:
            here = [i for i in alike if runs[i] is runs[place]]
            edit = replace(edit, call=here.index(place), of=len(here))
        if edit not in result:
            result.append(edit)
    return result


def _alike(edit: Edit, call: Seen) -> bool:
    # What the modules inside one have edited is what it sees.
    args, kwargs = call.given if call.scopes[-1][0] == edit.module else call.edited
    return looks_like(edit, call.function, call.shapes, args, kwargs)


def _as_decided(call: FrozenCall, outputs: Shapes, args: Any, result: Any) -> Any:
    """The result with the indices, masks and counts of the dense run, where they still fit.

    A narrower model scores otherwise, so it would choose other boxes or experts, and another number
    of them; the shapes that the plan predicts are those of the dense model's choices.
    """
    if all(then is None for then in call.decisions):
        return result
    leaves, spec = tree_flatten(result)
    if len(leaves) != len(call.decisions):
        return result
    shapes = iter(outputs)
    for i, (now, then) in enumerate(zip(leaves, call.decisions, strict=True)):
        shape = next(shapes, None) if isinstance(now, Tensor) else None
        if then is None:
            continue
        if not isinstance(now, Tensor):
            leaves[i] = then if call.function in _READS and type(now) is type(then) else now
        elif tuple(then.shape) == shape and not torch.equal(now, then.to(now.device)):
            if any(now is a for a in tree_leaves(args)):  # in place
                now.copy_(then)
            else:
                leaves[i] = then.clone()
    return tree_unflatten(leaves, spec)


_READS = {"item", "tolist", "__int__", "__float__", "__index__"}


def _reduced(n: int, d: int) -> list[int]:
    g = math.gcd(n, d)
    return [n // g, d // g]


def shapes_of(value: Any) -> Shapes:
    return [tuple(t.shape) for t in arguments_in(value) if isinstance(t, Tensor)]


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The leaves (path, old, new) at which two argument nests differ."""
    if old is new:
        return []
    if path == "":
        return differences(old[0], new[0], "args") + differences(old[1], new[1], "kwargs")
    if isinstance(old, slice) and isinstance(new, slice):
        parts = (("start", old.start, new.start), ("stop", old.stop, new.stop))
        return [(f"{path}/{k}", a, b) for k, a, b in parts if a != b]
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return []
    both = isinstance(old, tuple | list) and isinstance(new, tuple | list)
    if both and len(old) == len(new):
        return [
            d
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for d in differences(a, b, f"{path}/{i}")
        ]
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in new for d in differences(old.get(k), new[k], f"{path}/{k}")]
    same = type(old) is type(new) and (old == new or (old != old and new != new))  # nan too
    return [] if same else [(path, old, new)]


def planned(graph: Graph, plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """What stands for a parameter or buffer: the kept part of it, or only something so shaped."""
    if graph.on_data:
        return narrowed(plan, name, tensor)
    return torch.empty(plan.shape(name), dtype=tensor.dtype, device="meta")


def follow(graph: Graph, plan: Plan, model: nn.Module) -> Outcome:
    """Replay the forward of ``model``, whose tensors still have their old shapes."""
    model = copied(model)  # what a forward caches must not reach the next replay
    changed_modules = {name for name, m in model.named_modules() if isinstance(m, NarrowAttention)}
    calls = [c for c in graph.calls if c.module not in changed_modules]
    scopes = Scopes()
    mode = Follow(plan, calls, scopes, changed_modules)
    running: list[str] = []

    def leave(name: str, output: Any) -> None:
        if output is None and not running:
            running.append(name)
        scopes.leave(name, output)

    outcome = Outcome()
    try:
        with module_hooks(model, scopes.enter, leave):
            run(
                model,
                graph.example_inputs,
                [mode],
                fake=not graph.on_data,
                state=partial(planned, graph, plan),
            )
    except Mismatch as error:
        outcome.failed, outcome.error = error.call, str(error)
        outcome.module = error.call.module
    except Exception as error:  # noqa: BLE001 - any check of the user's forward may fail here
        outcome.module = running[0] if running else ""
        outcome.error = f"{type(error).__name__}: {error}"
    if outcome.ok and mode.position < len(calls):
        mode.branches()
    outcome.edits, outcome.reached, outcome.strange = mode.edits, mode.position, mode.strange
    outcome.seen, outcome.branched = mode.seen, mode.branched
    return outcome
