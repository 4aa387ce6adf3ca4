"""From a model and example inputs to its graph of unit classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.graph import classes as frozen
from secateur.graph.axes import Atom, Expr, Prod, Sum, Take, leaves, lock, one, resolve
from secateur.graph.capture import (
    Calls,
    Recorder,
    call_arguments,
    mark_outputs,
    module_hooks,
    named_tensors,
    run,
    skeleton,
    tensors_in,
)
from secateur.graph.classes import Axis, Member, UnitClass, module_of
from secateur.graph.fibres import fibres

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenOp:
    """One operator as it ran: its name, module, and the frozen axes of what it read and made.

    ``sources`` says where each input came from: a parameter or buffer (its name), an earlier operator
    (its place in ``Graph.ops``), or neither (None: a model input or a constant).
    """

    name: str
    module: str
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...] | None, ...]
    work: tuple[Axis, ...]
    statistical: bool
    sources: tuple[str | int | None, ...] = ()


@dataclass(frozen=True)
class FrozenCall:
    """One torch function as the forward called it (see ``capture.Call``)."""

    function: str
    scopes: tuple[tuple[str, int], ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]

    @property
    def module(self) -> str:
        return self.scopes[-1][0] if self.scopes else ""


@dataclass(frozen=True)
class Graph:
    """A model seen as unit classes: what can be removed and what goes with it.

    Attributes:
        model: The traced model, never modified.
        example_inputs: What it was traced with.
        classes: Every class by name, removable or locked.
        shapes: Shape of every parameter and buffer (shared ones once).
        axes: Frozen axes of every parameter and buffer.
        ops: The operators in the order in which they ran.
        calls: The torch functions that the forward called.
        outputs: Frozen axes of the (first) output of every module.
        unknown: Operators without a rule, and how often they ran; their axes are locked.
        on_data: True if the model had to be run on real tensors, since its control flow reads data.
    """

    model: nn.Module
    example_inputs: Any
    classes: Mapping[str, UnitClass]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[Axis, ...]]
    ops: tuple[FrozenOp, ...]
    calls: tuple[FrozenCall, ...]
    outputs: Mapping[str, tuple[Axis, ...]]
    unknown: Mapping[str, int] = field(default_factory=dict)
    on_data: bool = False

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of every class."""
        return {name: c.size for name, c in self.classes.items()}

    @cached_property
    def free(self) -> dict[str, UnitClass]:
        """The classes from which units can be removed."""
        return {n: c for n, c in self.classes.items() if c.locked is None}

    @cached_property
    def prunable_share(self) -> float:
        """Share of all parameter elements that lie along at least one free class."""
        total, touched = 0, 0.0
        parameters = {n for n, _ in self.model.named_parameters()}
        for name, axes in self.axes.items():
            if name in parameters:
                n = torch.Size(self.shapes[name]).numel()
                total += n
                held = 1.0
                for axis, size in zip(axes, self.shapes[name], strict=True):
                    covered = torch.zeros(size, dtype=torch.bool)
                    for _, unit in frozen.occurrences(axis, self.sizes):
                        covered |= unit >= 0
                    held *= 1 - covered.float().mean().item() if size else 1.0
                touched += n * (1 - held)
        return touched / total if total else 0.0

    def __str__(self) -> str:
        from secateur.graph.show import table

        return table(self)

    def explain(self, name: str) -> str:
        """Which units go together with those of a layer, and through which operators.

        Args:
            name: Qualified name of a module, a parameter or a class.

        Raises:
            ConfigError: Nothing has that name; the message offers the nearest ones.
        """
        from secateur.graph.explain import explain

        return explain(self, name)

    def draw(self, path: str) -> None:
        """Write a picture of the graph to an ``.svg`` or ``.html`` file.

        Raises:
            ConfigError: Another ending, or a folder that does not exist.
        """
        from secateur.graph.draw import draw

        draw(self, path)


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
    try:
        recorder, atoms = _record(model, example_inputs, fake=not on_data)
    except Exception as error:  # noqa: BLE001 - fake kernels refuse what real ones may accept
        if on_data or any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise _explained(example_inputs, error) from error
        log.info("tracing on real tensors, since fake ones gave %s", type(error).__name__)
        on_data = True
        try:
            recorder, atoms = _record(model, example_inputs, fake=False)
        except Exception as second:  # noqa: BLE001 - whatever the user's forward raises is told
            raise _explained(example_inputs, second) from second
    return _freeze(model, example_inputs, recorder, atoms, on_data=on_data)


def _check_inputs(model: nn.Module, example_inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {type(model).__name__}")
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
            f"{uninitialized[0]} has no shape yet (a lazy module): run the model once before tracing"
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
) -> tuple[Recorder, dict[str, list[Atom]]]:
    recorder = Recorder()
    atoms: dict[str, list[Atom]] = {}
    names = named_tensors(model)

    def on_tensor(name: str | None, tensor: Tensor) -> None:
        if name is None:
            recorder.set(
                tensor, [Atom(n, lock="model input") if n != 1 else one() for n in tensor.shape]
            )
            return
        atoms[name] = [Atom(n) if n != 1 else one() for n in tensor.shape]
        recorder.set(tensor, atoms[name])
        recorder.origin[id(tensor)] = tuple((name, i) for i in range(tensor.dim()))
        recorder.maker[id(tensor)] = name
        real = names[name]
        if not real.is_floating_point() and real.device.type != "meta":
            recorder.values[id(tensor)] = real.detach()

    double = skeleton(model)
    try:
        with module_hooks(double, recorder.scopes.enter, recorder.leave):
            output = run(
                double,
                example_inputs,
                [recorder, Calls(recorder)],
                fake=fake,
                on_tensor=on_tensor,
            )
    except Exception as error:
        error.__dict__["secateur_where"] = recorder.failed_in
        raise
    mark_outputs(recorder, output)
    read = {source for op in recorder.ops for source in op.sources}
    for name, axes in atoms.items():
        for e in axes if name not in read else ():
            lock(e, "not used by this forward")  # what it would have to agree with is not known
    return recorder, atoms


def _explained(example_inputs: Any, error: Exception) -> TraceError:
    where = getattr(error, "secateur_where", None) or "the model's forward"
    shapes = [tuple(t.shape) for t in tensors_in(call_arguments(example_inputs))]
    return TraceError(
        f"the model does not run on example_inputs of shapes {shapes}: {where} raised "
        f"{type(error).__name__}: {error}. Pass inputs that model(*inputs) accepts; a dict is "
        "passed by keyword."
    )


def _freeze(
    model: nn.Module,
    example_inputs: Any,
    recorder: Recorder,
    atoms: dict[str, list[Atom]],
    *,
    on_data: bool,
) -> Graph:
    kinds = _kinds(recorder)
    statistical: dict[int, dict[str, None]] = {}
    for op in recorder.ops:
        for e, why in op.reduced:
            for leaf in leaves(e):
                where = f"{why} in {op.module}" if op.module else why
                statistical.setdefault(id(leaf), {})[where] = None
    consumed = recorder.consumed

    # One class a leaf atom that some parameter or buffer has, named after what makes it.
    found: dict[int, list[tuple[str, int]]] = {}
    leaf_of: dict[int, Atom] = {}
    for name, axes in atoms.items():
        for i, e in enumerate(axes):
            for leaf in leaves(e):
                if leaf.size > 1:
                    leaf_of[id(leaf)] = leaf
                    places = found.setdefault(id(leaf), [])
                    if (name, i) not in places:
                        places.append((name, i))
    parameters = {n for n, _ in model.named_parameters()}
    class_name: dict[int, str] = {}
    taken: set[str] = set()
    # What can be removed has the first choice of names.
    for key in sorted(found, key=lambda k: leaf_of[k].lock is not None):
        places = found[key]
        made = [p for p in places if p not in consumed]
        made = [p for p in made if p[0] in parameters and len(atoms[p[0]]) > 1] or made or places
        base = module_of(made[0][0]) or made[0][0]
        kind = kinds.get(key, "channel")
        name = base if kind == "channel" else f"{base}:{kind}"
        candidate, n = name, 2
        while candidate in taken:
            candidate, n = f"{name}#{n}", n + 1
        taken.add(candidate)
        class_name[key] = candidate

    leaf_axis: dict[int, Axis] = dict(class_name)

    def freeze_all(axes: Iterable[Expr]) -> tuple[Axis, ...]:
        return tuple(_freeze_axis(resolve(e), leaf_axis) for e in axes)

    over = fibres(
        (freeze_all(axes) for axes in atoms.values()),
        (
            freeze_all(axes)
            for op in recorder.ops
            for axes in (*op.inputs, *op.outputs)
            if axes is not None
        ),
    )
    for key, name in class_name.items():
        if name in over:
            leaf_axis[key] = ("over", name, over[name])

    tensor_axes = {name: freeze_all(axes) for name, axes in atoms.items()}
    sizes = {class_name[k]: leaf.size for k, leaf in leaf_of.items()}
    members: dict[str, list[Member]] = {n: [] for n in sizes}
    for name, along in tensor_axes.items():
        for i, e in enumerate(atoms[name]):
            whole = _freeze_axis(resolve(e), class_name, locked=True)
            for cls, unit in frozen.occurrences(whole, sizes):
                of = _base_units(along, i, over.get(cls), sizes)
                members[cls].append(Member(name, i, unit, (name, i) not in consumed, of))
    classes = {
        class_name[key]: UnitClass(
            name=class_name[key],
            kind=kinds.get(key, "channel"),
            size=leaf.size,
            members=tuple(members[class_name[key]]),
            statistical=tuple(statistical.get(key, {})),
            locked=leaf.lock,
            over=over.get(class_name[key]),
        )
        for key, leaf in leaf_of.items()
    }
    return Graph(
        model=model,
        example_inputs=example_inputs,
        classes=classes,
        shapes={n: tuple(a.size for a in axes) for n, axes in atoms.items()},
        axes=tensor_axes,
        ops=tuple(
            FrozenOp(
                op.name,
                op.module,
                tuple(freeze_all(a) for a in op.inputs),
                tuple(None if a is None else freeze_all(a) for a in op.outputs),
                freeze_all(op.work),
                bool(op.reduced),
                op.sources,
            )
            for op in recorder.ops
        ),
        calls=tuple(
            FrozenCall(
                c.function,
                c.scopes,
                c.args,
                c.kwargs,
                tuple(freeze_all(a) for a in c.inputs),
                tuple(freeze_all(a) for a in c.outputs),
            )
            for c in recorder.calls
        ),
        outputs={m: freeze_all(a) for m, a in recorder.module_outputs.items()},
        unknown=dict(recorder.unknown),
        on_data=on_data,
    )


def _base_units(
    axes: tuple[Axis, ...], axis: int, base: str | None, sizes: Mapping[str, int]
) -> tuple[int, Tensor] | None:
    """Along which axis of a tensor the units of ``base`` lie that belong to those along ``axis``."""
    if base is None:
        return None
    for i in (axis, *range(len(axes))):
        units = [u for name, u in frozen.occurrences(axes[i], sizes) if name == base]
        if units:
            return i, torch.stack(units).amax(0)
    return None


def _freeze_axis(e: Expr, class_name: Mapping[int, str], *, locked: bool = False) -> Axis:
    """Leaves that no parameter has are only a size, and so are locked ones unless asked for."""
    match e:
        case Atom():
            named = id(e) in class_name and (locked or e.lock is None)
            return class_name[id(e)] if named else e.size
        case Prod():
            return _join([_freeze_axis(f, class_name, locked=locked) for f in e.factors], "prod")
        case Sum():
            return _join([_freeze_axis(t, class_name, locked=locked) for t in e.terms], "sum")
        case Take():
            base = _freeze_axis(resolve(e.base), class_name, locked=locked)
            return len(e.index) if isinstance(base, int) else ("take", base, tuple(e.index))


def _join(parts: list[Axis], how: str) -> Axis:
    """Neighbouring fixed sizes merge; what is fixed throughout is a number."""
    merged: list[Axis] = []
    for p in parts:
        if isinstance(p, int) and merged and isinstance(merged[-1], int):
            merged[-1] = merged[-1] * p if how == "prod" else merged[-1] + p
        else:
            merged.append(p)
    return merged[0] if len(merged) == 1 else (how, *merged)


_ROLE_ORDER = ("query", "head", "head_dim", "group", "hidden", "normalised", "batched")


def _kinds(recorder: Recorder) -> dict[int, str]:
    """The kind of each leaf, from the roles that operators gave to its axes."""
    roles: dict[int, set[str]] = {}
    for e, role in recorder.roles:
        for leaf in leaves(e):
            roles.setdefault(id(leaf), set()).add(role)
    names = {"normalised": "width", "batched": "head"}
    return {
        key: next(names.get(r, r) for r in _ROLE_ORDER if r in given)
        for key, given in roles.items()
    }


def match_names(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Which names each glob matches; ``*`` matches across dots."""
    compiled = {
        p: re.compile(
            "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in p) + r"\Z"
        )
        for p in patterns
    }
    names = list(names)
    return {p: [n for n in names if rx.match(n)] for p, rx in compiled.items()}
