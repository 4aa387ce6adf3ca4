"""Plans after one another: what a plan of the pruned model means for the model it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.errors import PlanError
from secateur.graph.classes import axis_mask, occurrences

if TYPE_CHECKING:
    from secateur.graph import Graph
    from secateur.plan.plan import Plan


def then(first: Plan, second: Plan) -> Plan:
    """One plan of the first plan's model that does what both do, one after the other.

    Raises:
        PlanError: The second was made for another model than the first one makes, or the first has
            no graph.
    """
    if first.graph is None:
        raise PlanError("a stored plan cannot be composed without its graph: trace the model first")
    if first.dropped or second.dropped:
        raise PlanError("plans that drop whole blocks cannot be composed: apply them in turn")
    _check_follows(first, second)
    _refuse_rows(first, second)
    keep = _masks(first)
    for ours, theirs, units, their_units in correspondence(first, second):
        if theirs in second.keep:
            keep[ours][units] &= second.keep[theirs][their_units]
    whole = first.with_keep({n: m for n, m in keep.items() if not m.all()}, *second.notes)
    both = replace(whole, exact=first.exact and second.exact).prepared()
    for tensor in both.axes:
        if both.shape(tensor) != second.shape(tensor):
            raise PlanError(
                f"the two plans cannot be one: {tensor} would have shape {both.shape(tensor)}, but "
                f"after both it has {second.shape(tensor)}; apply them one after the other"
            )
    return both


def _masks(plan: Plan) -> dict[str, Tensor]:
    whole = {n: torch.ones(k, dtype=torch.bool) for n, k in plan.sizes.items()}
    return {n: plan.keep.get(n, mask).clone() for n, mask in whole.items()}


def _refuse_rows(*plans: Plan) -> None:
    for plan in plans:
        for name, mask in plan.keep.items():
            if mask.dim() == 2:
                raise PlanError(
                    f"{name} is chosen anew for every unit of another class, which cannot be "
                    "composed: apply the plans one after the other"
                )


def rest(done: Plan, wanted: Plan, graph: Graph) -> Plan:
    """What is left to do for ``wanted`` when ``done``, a plan of the same model, has been applied.

    Args:
        done: Applied already.
        wanted: Keeps no unit that ``done`` removed.
        graph: Of the model that ``done`` made.
    """
    from secateur.plan.plan import Plan

    _refuse_rows(done, wanted)
    keep: dict[str, Tensor] = {}
    for ours, theirs, units, their_units in correspondence(done, graph):
        if ours in wanted.keep and graph.classes[theirs].locked is None:
            mask = keep.setdefault(theirs, torch.ones(graph.sizes[theirs], dtype=torch.bool))
            mask[their_units] &= wanted.keep[ours][units]
    return replace(Plan.of(graph, keep, **wanted.made_by), notes=wanted.notes)


def scattered(scores: Mapping[str, Tensor], done: Plan, graph: Graph) -> dict[str, Tensor]:
    """Scores of the units of a pruned model, as scores of the units of the model it came from.

    Units that are gone score lower than any other, so they go first again; units that no longer
    compete (the last of a class, which is no class any more) score higher.

    Args:
        scores: Class of ``graph`` -> scores.
        done: The plan that made the pruned model.
        graph: Of the pruned model.
    """
    everything = torch.cat([s.flatten() for s in scores.values()])
    margin = everything.abs().max() + 1
    lowest, highest = everything.min() - margin, everything.max() + margin
    found: dict[str, Tensor] = {}
    for ours, theirs, units, their_units in correspondence(done, graph):
        if theirs in scores:
            if ours not in found:
                found[ours] = highest.repeat(done.sizes[ours])
            found[ours][units] = scores[theirs][their_units]
    for name, mask in done.keep.items():
        values = found.setdefault(name, highest.repeat(done.sizes[name]))
        values[~mask] = lowest
    return found


def correspondence(first: Plan, second: Plan | Graph) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Which units of a model are which of the model that a plan makes of it.

    Classes are matched by the positions of the tensors they run along, since names may differ.

    Args:
        first: The plan.
        second: The graph of the model it makes, or a plan of that model.

    Yields:
        A class of the first, the class of the second that holds its kept units, and their numbers
        in both.
    """
    seen: set[tuple[str, str]] = set()
    for tensor, axes in first.axes.items():
        for axis, their_axis in zip(axes, second.axes[tensor], strict=True):
            if isinstance(axis, int) or isinstance(their_axis, int):
                continue
            alive = axis_mask(axis, first.keep, first.sizes)
            theirs = list(occurrences(their_axis, second.sizes))
            for name, unit in occurrences(axis, first.sizes):
                for their_name, their_unit in theirs:
                    if (name, their_name) in seen:
                        continue
                    pairs = _pairs(unit[alive], their_unit)
                    if pairs is not None:
                        seen.add((name, their_name))
                        yield name, their_name, *pairs


def _pairs(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor] | None:
    """The distinct pairs of units at the same positions, if they are one to one."""
    both = (ours >= 0) & (theirs >= 0)
    pairs = torch.stack([ours[both], theirs[both]]).unique(dim=1)
    if pairs.shape[1] == 0 or any(row.unique().numel() != row.numel() for row in pairs):
        return None
    return pairs[0], pairs[1]


def _check_follows(first: Plan, second: Plan) -> None:
    for tensor in first.axes:
        found, wanted = second.shapes.get(tensor), first.shape(tensor)
        if found is None or tuple(found) != wanted:
            raise PlanError(
                f"the second plan is not of the model that the first one makes: {tensor} has shape "
                f"{wanted} there, the second plan was made for {found}"
            )
