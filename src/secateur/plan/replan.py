"""The next plan of several: more than what is gone, decided on the model that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur import criteria
from secateur.criteria import Criterion
from secateur.engine.statistics import Statistics, Stats, collect
from secateur.errors import BudgetError, PlanError
from secateur.granularity.units import score
from secateur.graph import Graph
from secateur.graph.forward import named_tensors
from secateur.plan import budget
from secateur.plan.assign import fill_in
from secateur.plan.compose import rest, scattered
from secateur.plan.plan import Plan
from secateur.plan.select import plan as make_plan
from secateur.plan.selection import fill
from secateur.plan.surgery import narrowed

Keep = Mapping[str, Tensor]


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
    """A larger plan of the original model: all that is gone, and the least of what is left.

    Scores are those of the model that is left; amounts, budgets, widths and overrides are of the
    original model, where the units that are gone are taken first.

    Args:
        graph: Of the original model.
        done: What is gone, a plan of the original model.
        here: Graph of the model that is left.
        target: ``amount``, ``keep`` and ``overrides``, as for ``plan``.
        criterion, data, loss, seed, reduction, normalizer, **selection: As for ``plan``.
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
    how = {"criterion": scored, "statistics": known, "seed": seed, **selection}
    made_by = {**done.made_by, "amount": target["amount"], "budget": target["keep"]}
    made_by["overrides"] = target["overrides"]
    ready = done
    for check in (False, True):  # the second time what cannot be made smaller is made up for
        try:
            wanted = make_plan(graph, **how, **target, check=check, left=done.keep)
        except BudgetError:  # what comes nearest is of more use than none, after all the training
            wanted = make_plan(graph, **how, **target, check=check)
        masks = _both(done.keep, wanted.keep)
        both = replace(Plan.of(graph, masks, **made_by), notes=wanted.notes)
        ready = _larger(done, both.prepared())
        if not set(masks) - set(ready.keep):
            break
    full = _filled(graph, ready.keep, target["keep"])
    if abs(full - 1) > budget.TOLERANCE:
        note = (
            f"budget {dict(target['keep'])}: {full:.3f} of it is used, the nearest that can be had "
            "when nothing that is gone comes back"
        )
        ready = replace(ready, notes=(*ready.notes, note))
    return ready


def _both(one: Keep, other: Keep) -> dict[str, Tensor]:
    """The units that both keep."""
    whole = torch.ones((), dtype=torch.bool)
    return {n: one.get(n, whole) & other.get(n, whole) for n in {**one, **other}}


def _larger(done: Plan, ready: Plan) -> Plan:
    """The plan, with what is gone still gone where that had to be given back."""
    for _ in range(3):
        lost = {n: mask for n, mask in done.keep.items() if n not in ready.keep}
        if not lost:
            return ready
        ready = ready.with_keep({**ready.keep, **lost}).prepared()
    return done


def _filled(graph: Graph, keep: Keep, wanted: Mapping[str, float] | None) -> float:
    """How full the tightest budget is; 1 is exactly met. Latency is not asked: it is no formula."""
    forms = {m: budget.cost(graph, m) for m in wanted or () if m != "latency"}
    if not wanted or not forms or len(forms) < len(wanted):
        return 1.0
    return max(
        budget.plan_cost(form, graph, keep) / budget.dense_cost(form, graph) / wanted[m]
        for m, form in forms.items()
    )


def shrink(done: Plan, plan: Plan, left: nn.Module, here: Graph) -> tuple[nn.Module, Plan | None]:
    """Make a larger plan physical, with the values of the model that a smaller one left.

    The Python side is solved for on the original model, whose forward says what it means; a forward
    that was corrected already may not say it any more.

    Args:
        done: What is gone, a plan of the original model.
        plan: A plan of the original model that removes all of that, and more.
        left: What ``done`` made, possibly trained since.
        here: Its graph.

    Returns:
        The model that ``plan`` makes, and the difference as a plan of ``left`` (None if the classes
        of ``left`` cannot say it).

    Raises:
        PlanError: ``left`` is not what ``done`` made.
    """
    made = plan.apply()
    old, wanted = named_tensors(left), list(named_tensors(made))
    step: Plan | None = replace(rest(done, plan, here), edits=())
    if step is not None and any(step.shape(n) != plan.shape(n) for n in wanted):
        step = None
    values: dict[str, Tensor] = {}
    for name in wanted:
        if name not in old or tuple(old[name].shape) != done.shape(name):
            raise PlanError(
                f"recovery has changed {name}, which the next step needs as the plan left it: "
                f"shape {done.shape(name)}"
            )
        still = _held(plan, name)[_held(done, name)].to(old[name].device)
        values[name] = old[name].detach().flatten()[still].view(plan.shape(name))
    for name in old.keys() - values.keys():
        if step is None:
            raise PlanError(f"recovery has added {name}, which cannot be taken to the next step")
        values[name] = narrowed(step, name, old[name])
    fill_in(made, values)
    return made, step


def _held(plan: Plan, name: str) -> Tensor:
    """Which elements of a tensor stay, flat."""
    held = torch.ones(plan.shapes[name], dtype=torch.bool)
    return fill(held, plan.selection(name), False).flatten()
