"""From recorded expressions to frozen axes and named unit classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph import classes as frozen
from secateur.graph.axes import Atom, Expr, Prod, Sum, Take, leaves, locked, resolve
from secateur.graph.capture import Recorder
from secateur.graph.classes import Axis, Member, UnitClass, module_of
from secateur.graph.fibres import fibres
from secateur.graph.graph import FrozenCall, FrozenOp, Graph


def freeze(
    model: nn.Module,
    example_inputs: Any,
    recorder: Recorder,
    atoms: dict[str, list[Atom]],
    *,
    on_data: bool,
    aside: Mapping[str, str],
) -> Graph:
    kinds = _kinds(recorder)
    statistical: dict[int, dict[str, None]] = {}
    for op in (*recorder.ops, *recorder.beside):
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

    known: dict[int, Axis] = {}  # the recorder holds the expressions, so their ids are unique

    def freeze_all(axes: Iterable[Expr]) -> tuple[Axis, ...]:
        result = []
        for e in axes:
            if id(e) not in known:
                known[id(e)] = _freeze_axis(resolve(e), leaf_axis)
            result.append(known[id(e)])
        return tuple(result)

    over = fibres(
        (freeze_all(axes) for axes in atoms.values()),
        (
            freeze_all(axes)
            for op in (*recorder.ops, *recorder.beside)
            for axes in (*op.inputs, *op.outputs)
            if axes is not None
        ),
    )
    for key, name in class_name.items():
        if name in over:
            leaf_axis[key] = ("over", name, over[name])
    known.clear()

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
                c.decisions,
            )
            for c in recorder.calls
        ),
        outputs={m: freeze_all(a) for m, a in recorder.module_outputs.items()},
        unknown=dict(recorder.unknown),
        on_data=on_data,
        aside=aside,
    )


def _base_units(
    axes: tuple[Axis, ...], axis: int, base: str | None, sizes: Mapping[str, int]
) -> tuple[int, Tensor] | None:
    """Along which axis of a tensor the units of ``base`` lie that those along ``axis`` have."""
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
    """The kind of each leaf, from the roles that operators gave to its axes.

    Heads nested in heads are the queries of each group, whichever kernel repeats its keys.
    """
    roles: dict[int, set[str]] = {}
    for e, role in recorder.roles:
        whole = resolve(e)
        nested = False
        for part in whole.factors if isinstance(whole, Prod) else (whole,):
            inner = "query" if nested and role in ("head", "batched") else role
            for leaf in leaves(part):
                roles.setdefault(id(leaf), set()).add(inner)
            nested = nested or not locked(part)
    names = {"normalised": "width", "batched": "head"}
    return {
        key: next(names.get(r, r) for r in _ROLE_ORDER if r in given)
        for key, given in roles.items()
    }
