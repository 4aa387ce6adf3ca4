"""Solve for what the Python side must say after surgery.

1. ``follow`` replays the forward with the planned shapes and lists every argument that is wrong.
2. Attributes are tried first, since they leave a clean model: in the modules that made those calls
   (and
   their configs) every integer that equals a wrong argument is set to the right one, all together,
   for all modules of a kind at once; then those that turn out not to matter are put back.
3. What attributes cannot express stays as an edit of the call (see ``mend``).
4. What cannot be mended at all is given back: the classes at the failing call stay whole, with a
   note.
5. How many queries share a key and value is kept right even where this forward does not ask: it is
   read only when there is a padding mask or a cache.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.errors import SecateurError, SurgeryError
from secateur.graph.classes import Axis, classes_in
from secateur.graph.forward import named_tensors, run
from secateur.graph.graph import FrozenCall, Graph
from secateur.plan.follow import Outcome, follow, planned, settled
from secateur.plan.mend import unmend
from secateur.plan.plan import Edit, Plan
from secateur.plan.surgery import change_python_side, set_attribute

_ATTEMPTS = 40


@dataclass(frozen=True)
class Setting:
    """An attribute of all modules of one kind (class and place up to numbers) to be changed."""

    kind: str
    name: str
    changes: tuple[tuple[str, Any, Any], ...]  # (module, old, new)


def prepare(graph: Graph, plan: Plan) -> Plan:
    """The plan with edits; classes that cannot be made physical are given back, with a note."""
    for _ in range(len(plan.keep) + 1):
        if not plan.keep:
            return replace(plan, edits=())
        edits, outcome = solve(graph, plan)
        if outcome.ok:
            ready = replace(plan, edits=tuple(edits))
            outcome.error = _not_in_training(graph, ready) or _another_branch(graph, ready, outcome)
        if outcome.ok:
            return ready
        blamed = _blame(graph, plan, outcome)
        if not blamed:
            break
        kept = {n: m for n, m in plan.keep.items() if n not in blamed}
        where = f"{outcome.failed.function} in " if outcome.failed else ""
        note = (
            f"{', '.join(sorted(blamed))} stay whole: {where}"
            f"{outcome.module or 'the forward'} cannot say the new size ({outcome.error}); "
            "secateur.graph.exported(model, inputs) has no such forward and can be pruned instead"
        )
        plan = plan.with_keep(kept, note)
    raise SurgeryError(f"the plan cannot be made physical: {outcome.module}: {outcome.error}")


def _another_branch(graph: Graph, plan: Plan, outcome: Outcome) -> str:
    """Why the way that the pruned forward takes is wrong, if it takes another than the dense one.

    It may be right: keys need no repeating where one head is left. So it is looked at.
    """
    meta = any(t.is_meta for t in named_tensors(graph.model).values())
    if outcome.branched is None or meta:
        return ""
    try:
        proof = replace(plan, graph=graph).verify()
        if proof.ok or not proof.proven:
            return ""
        why = "at its new size it takes another branch, which gives something else"
    except SecateurError as error:
        why = str(error)
    outcome.failed, outcome.module = outcome.branched, outcome.branched.module
    return why


def _not_in_training(graph: Graph, plan: Plan) -> str:
    """Why the pruned model would not run in training mode, if parts of it run only then."""
    if "in training" not in graph.aside.values():
        return ""
    model = graph.skeleton()
    change_python_side(plan, model)
    try:
        run(
            model,
            graph.example_inputs,
            [],
            fake=not graph.on_data,
            state=lambda name, tensor: planned(graph, plan, name, tensor),
            training=True,
        )
    except Exception as error:  # noqa: BLE001 - any line of the user's forward may raise
        return f"in training mode, {type(error).__name__}: {error}"
    return ""


def solve(graph: Graph, plan: Plan) -> tuple[list[Edit], Outcome]:
    """Attribute edits and call edits that make the forward give the predicted shapes."""
    skeleton = graph.skeleton()
    unmend(skeleton)  # the edits of a model that was pruned before are all found anew
    change_python_side(replace(plan, edits=()), skeleton)
    before = outcome = follow(graph, plan, skeleton)
    settings: list[Setting] = []
    attempts = 0
    tried: set[tuple[str, str, Any]] = set()
    while attempts < _ATTEMPTS and (outcome.edits or not outcome.ok):
        found = [s for s in _candidates(graph, plan, skeleton, outcome) if _key(s) not in tried]
        if not found:
            break
        tried.update(_key(s) for s in found)
        better, outcome, used = _improve(graph, plan, skeleton, found, outcome)
        attempts += used
        settings += better
    if len(settings) > 1 or (settings and not _better(outcome, before)):
        settings, outcome = _minimal(graph, plan, skeleton, settings, outcome)
    edits = [Edit(m, s.name, new, old) for s in settings for m, old, new in s.changes]
    return edits + _groups(graph, plan, skeleton) + settled(outcome), outcome


_GROUPS = ("num_key_value_groups", "n_rep")  # of transformers, and of Llama's own code


def _groups(graph: Graph, plan: Plan, skeleton: nn.Module) -> list[Edit]:
    """The number of queries per key and value of attentions that still tell the old one."""
    found: dict[str, Edit] = {}
    groups = {c.over for c in graph.classes.values() if c.kind == "query"}
    for name in plan.keep:
        c = graph.classes[name]
        if c.kind not in ("query", "head") or name in groups:
            continue
        for module in dict.fromkeys(m.rpartition(".")[0] for m in c.producers):
            attention = skeleton.get_submodule(module)
            for attribute in _GROUPS:
                if getattr(attention, attribute, None) == c.size:
                    new = c.size - plan.removed[name]
                    found[module] = Edit(module, attribute, new, c.size)
    return list(found.values())


def _key(s: Setting) -> tuple[str, str, Any]:
    return s.kind, s.name, repr(s.changes)


def _better(a: Outcome, b: Outcome) -> bool:
    """True if outcome ``a`` is nearer to done than ``b``."""
    if a.ok != b.ok:
        return a.ok
    if not a.ok and a.reached != b.reached:
        return a.reached > b.reached
    # A size that is also asked about (``if self.radix > 1``) must not lead to other operators.
    return (a.strange, len(a.edits)) < (b.strange, len(b.edits))


def _improve(
    graph: Graph, plan: Plan, skeleton: nn.Module, found: list[Setting], before: Outcome
) -> tuple[list[Setting], Outcome, int]:
    """Set all candidates at once; if that does not help, one at a time, keeping those that do."""
    _set(skeleton, found)
    together = follow(graph, plan, skeleton)
    if together.ok and not together.edits and together.strange <= before.strange:
        return found, together, 1
    _unset(skeleton, found)
    kept: list[Setting] = []
    used = 1
    best = before
    if _better(together, before):
        _set(skeleton, found)
        return found, together, used
    for s in found:
        _set(skeleton, [s])
        outcome = follow(graph, plan, skeleton)
        used += 1
        if _better(outcome, best):
            kept.append(s)
            best = outcome
        else:
            _unset(skeleton, [s])
    return kept, best, used


def _minimal(
    graph: Graph, plan: Plan, skeleton: nn.Module, settings: list[Setting], best: Outcome
) -> tuple[list[Setting], Outcome]:
    """Put back every attribute without which the forward is as right: it meant something else."""
    needed = list(settings)
    for s in reversed(settings):
        _unset(skeleton, [s])
        outcome = follow(graph, plan, skeleton)
        if _better(best, outcome):
            _set(skeleton, [s])
        else:
            needed.remove(s)
            best = outcome
    return needed, best


def _set(skeleton: nn.Module, settings: Iterable[Setting]) -> None:
    for s in settings:
        for module, _, new in s.changes:
            set_attribute(skeleton.get_submodule(module), s.name, new)


def _unset(skeleton: nn.Module, settings: Iterable[Setting]) -> None:
    for s in settings:
        for module, old, _ in s.changes:
            set_attribute(skeleton.get_submodule(module), s.name, old)


def _candidates(graph: Graph, plan: Plan, skeleton: nn.Module, outcome: Outcome) -> list[Setting]:
    """Attributes whose value is a wrong argument, or, where the forward stopped, an old size."""
    wanted: dict[str, dict[str, dict[str, tuple[Any, Any]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for edit in outcome.edits:
        new = _new_value(edit)
        for name, value in _values(skeleton.get_submodule(edit.module)):
            if type(value) is type(edit.old) and value == edit.old and not isinstance(value, bool):
                kind = _kind(skeleton, edit.module)
                wanted[kind][name].setdefault(edit.module, (value, new))
    if not outcome.ok:
        modules = dict(skeleton.named_modules())
        for path in _up(outcome.module):
            if path not in modules:
                continue
            pairs, kind = _size_changes(graph, plan, path), _kind(skeleton, path)
            alike = [m for m in modules if _kind(skeleton, m) == kind]
            for name, value in _values(modules[path]):
                if isinstance(value, int) and value in pairs:
                    for m in alike:  # what one block checks, its sisters check
                        if getattr(modules[m], name, None) == value:
                            wanted[kind][name].setdefault(m, (value, pairs[value]))
    return [
        Setting(kind, name, tuple((m, old, new) for m, (old, new) in modules.items()))
        for kind, names in wanted.items()
        for name, modules in names.items()
    ]


def _new_value(edit: Edit) -> Any:
    if isinstance(edit.value, dict):
        n, d = edit.value["times"]
        return edit.old * n // d
    return edit.value


def _kind(skeleton: nn.Module, path: str) -> str:
    return re.sub(r"\d+", "#", path) + ":" + type(skeleton.get_submodule(path)).__name__


def _up(path: str) -> Iterator[str]:
    """A module's path and those of its two nearest ancestors."""
    parts = path.split(".") if path else []
    for k in range(len(parts), max(-1, len(parts) - 3), -1):
        yield ".".join(parts[:k])


_NOT_SIZES = {"training", "layer_idx", "layer_id", "padding_idx", "idx", "index", "pad_token_id"}


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Integer (or list of integer) attributes of a module and of its own config."""
    for name, value in vars(module).items():
        if name.startswith("_") or name in _NOT_SIZES:
            continue
        several = value if isinstance(value, tuple | list) else (value,)
        if several and all(type(v) is int for v in several):
            yield name, value


def _size_changes(graph: Graph, plan: Plan, module: str) -> dict[int, int]:
    """Old size -> new size of everything that calls of a module (or below it) read or make."""
    pairs: dict[int, int] = {}
    for call in graph.calls:
        if call.module == module or (module and call.module.startswith(module + ".")):
            for axes in (*call.inputs, *call.outputs):
                for axis in axes:
                    for part in parts_of(axis):
                        old, new = plan.counts(part)
                        if old != new:
                            pairs.setdefault(old, new)
    return pairs


def parts_of(axis: Axis) -> Iterator[Axis]:
    """An axis, its parts, and the products of its neighbouring factors."""
    yield axis
    match axis:
        case ("prod", *factors):
            for i in range(len(factors)):
                for j in range(i + 1, len(factors) + 1):
                    if j - i == 1:
                        yield from parts_of(factors[i])
                    elif j - i < len(factors):
                        yield ("prod", *factors[i:j])
        case ("sum", *terms):
            for t in terms:
                yield from parts_of(t)
        case ("take", base, _):
            yield from parts_of(base)


def _blame(graph: Graph, plan: Plan, outcome: Outcome) -> set[str]:
    """The pruned classes at the failing call; else those of the failing module; else all."""

    def pruned(calls: Iterable[FrozenCall]) -> set[str]:
        return {
            c
            for call in calls
            for axes in (*call.inputs, *call.outputs)
            for axis in axes
            for c in classes_in(axis)
            if c in plan.keep
        }

    if outcome.failed is not None and (found := pruned([outcome.failed])):
        return found
    if outcome.error.startswith("in training mode"):
        inside = tuple(f"{name}." for name in graph.aside)
        return {
            c
            for c in plan.keep
            if any(m.tensor.startswith(inside) for m in graph.classes[c].members)
        }
    for module in _up(outcome.module):
        below = [c for c in graph.calls if c.module == module or c.module.startswith(module + ".")]
        if found := pruned(below):
            return found
    return set(plan.keep)
