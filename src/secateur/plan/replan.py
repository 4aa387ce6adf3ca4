"""The next plan of several: more than what is gone, decided on the model that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur import criteria
from secateur.criteria import Criterion
from secateur.engine.statistics import Statistics, Stats, collect
from secateur.granularity.units import score
from secateur.graph import Graph
from secateur.plan import budget
from secateur.plan.compose import rest, scattered
from secateur.plan.plan import Plan
from secateur.plan.select import plan as make_plan

_TRIES = 8  # to meet a budget when the cheapest way to meet it would bring units back


def replan(
    graph: Graph,
    done: Plan,
    here: Graph,
    target: Mapping[str, Any],
    *,
    criterion: Any,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    reduction: str | None = None,
    normalizer: str | None = None,
    **selection: Any,
) -> Plan:
    """What to remove next, as a plan of the model that is left.

    Scores are those of the model that is left; amounts, budgets, widths and overrides are of the
    original model, where the units that are gone are taken first.

    Args:
        graph: Of the original model.
        done: What is gone, a plan of the original model.
        here: Graph of the model that is left.
        target: ``amount``, ``keep`` and ``overrides``, as for ``plan``.
        criterion, data, loss, seed, reduction, normalizer, **selection: As for ``plan``.

    Returns:
        A plan of the model that is left; ``done.then`` of it is one of the original.
    """
    chosen = criteria.find(criterion)
    classes = list(here.free.values())
    statistics = None
    if chosen.needs:
        statistics = collect(here, chosen.needs, data, loss=loss, classes=classes, seed=seed)
    ranked = score(here, classes, chosen, statistics, reduction=reduction, normalizer=normalizer)
    scores = scattered(ranked, done, here)
    known = Statistics(classes={n: Stats(n, size=len(s), score=s) for n, s in scores.items()})
    scored = Criterion(
        chosen.name, lambda stats: stats.score, level="class", needs=frozenset({"score"})
    )
    asked = dict(target)
    nearest: tuple[float, Plan] | None = None
    for _ in range(_TRIES):
        wanted = make_plan(
            graph, criterion=scored, statistics=known, seed=seed, check=False, **selection, **asked
        )
        full = _filled(graph, done, wanted, target["keep"])
        if nearest is None or abs(full - 1) < abs(nearest[0] - 1):
            nearest = full, wanted
        if abs(full - 1) <= budget.TOLERANCE:
            break
        asked["keep"] = {m: min(1.0, value / full) for m, value in asked["keep"].items()}
    assert nearest is not None
    full, wanted = nearest
    notes = wanted.notes
    if abs(full - 1) > budget.TOLERANCE:
        notes += (
            f"budget {dict(target['keep'])}: {full:.3f} of it is used, the nearest that can "
            "be had when nothing that is gone comes back",
        )
    made_by = {**done.made_by, "amount": target["amount"], "budget": target["keep"]}
    made_by["overrides"] = target["overrides"]
    return rest(done, replace(wanted, made_by=made_by, notes=notes), here).prepared()


def _filled(graph: Graph, done: Plan, wanted: Plan, keep: Mapping[str, float] | None) -> float:
    """How full the tightest budget is once what is gone stays gone; 1 is exactly met."""
    masks: dict[str, Tensor] = {
        n: done.keep.get(n, torch.ones(())).bool() & wanted.keep.get(n, torch.ones(())).bool()
        for n in {*done.keep, *wanted.keep}
    }
    found = [1.0] if not keep else []
    for metric, value in (keep or {}).items():
        if metric == "latency":
            return 1.0  # not a closed form
        form = budget.cost(graph, metric)
        found.append(budget.plan_cost(form, graph, masks) / budget.dense_cost(form, graph) / value)
    return max(found)
