"""``prune``: trace, plan, remove, prove, heal and measure, in one call."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from secateur import criteria
from secateur import recovery as recoveries
from secateur import schedule as schedules
from secateur.engine.batches import require_numbers
from secateur.engine.order import generators_kept
from secateur.errors import BudgetError, ConfigError, DataError, SurgeryError
from secateur.graph import Graph, trace
from secateur.graph.forward import named_tensors
from secateur.measure import Measurement
from secateur.measure import measure as measure_cost
from secateur.measure.calling import evaluating
from secateur.methods.droppable import depth_of
from secateur.methods.registry import Method
from secateur.methods.routed import experts_of
from secateur.names import unknown
from secateur.plan.assign import fill_in
from secateur.plan.carry import carry
from secateur.plan.depth import depth_plan, enough
from secateur.plan.plan import Plan
from secateur.plan.replan import replan, shrink
from secateur.plan.select import plan as make_plan
from secateur.plan.show import unmoved
from secateur.plan.timing import kept_to
from secateur.plan.verify import Verification
from secateur.recovery import Recovery
from secateur.recovery.nested import changed, in_turn
from secateur.recovery.registry import step as healing_step
from secateur.report import Metric
from secateur.result import Result, Seen, check_judge, make_record, weights_of
from secateur.settled import DEPTH, depth_settings, known_kinds, removing, settled

log = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module], float]
_STEPS = 5  # of a schedule that is not one-shot


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    amount: float | None = None,
    keep: Mapping[str, float] | None = None,
    method: Any = None,
    criterion: Any = None,
    scope: Any = None,
    data: Iterable[Any] | None = None,
    recovery: Any = None,
    schedule: Any = None,
    steps: int | None = None,
    evaluate: Evaluate | None = None,
    metric: Metric | None = None,
    verify: bool = True,
    measure: bool | Mapping[str, Any] = True,
    seed: int = 0,
    inplace: bool = False,
    progress: bool = True,
    **selection: Any,
) -> Result:
    r"""Make a model smaller: trace it, decide what goes, remove it, prove it, heal it, measure it.

    With several ``steps`` the amount grows along ``schedule``; after each the model is healed, and
    the next is decided on the healed model. Amounts and budgets are always of the original model,
    and the steps add up to one plan of it.

    Args:
        model: Any module; it stays as it is unless ``inplace``.
        example_inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs; MACs
            and latency are those of one forward on them.
        amount: Fraction of the units to remove, in [0, 1).
        keep: Budget instead: fraction to keep of ``params``, ``macs``, ``memory`` or ``latency``.
        method: A published one (``sec.methods("after")``), which says criterion, scope, recovery
            and more, wherever you say nothing: name, (name, options) or ``Method``.
        criterion: Which units: name, (name, options), or a function of (weight, stats); ``l2``.
        scope: How much where: ``uniform`` (the default), ``global``, ``isomorphic``, or a function.
        data: Batches, (inputs..., target) or dicts, for criteria and recoveries that need them.
        recovery: Name, (name, options), a ``Recovery``, or a list of these, done in turn.
        schedule: ``one-shot`` (the default), ``linear``, ``exponential``, ``cubic``, or a function.
        steps: How often to prune and heal; default: 1 for ``one-shot``, 5 for others.
        evaluate: Model -> number, called in evaluation mode without gradients.
        metric: What that number is; default: accuracy as a fraction, higher is better.
        verify: Compare every pruned model with the masked one, before it is healed.
        measure: Measure the result beside the dense model; a mapping holds options of
            ``secateur.measure``.
        seed: For criteria and statistics that draw at random; of a recovery's it is an option.
        inplace: Change ``model`` itself, at the very end; its parameters keep their identity.
        progress: Show the bars of recovery, on standard error.
        **selection: Any other argument of ``plan``: ignore, round_to, statistical, overrides, ...

    Returns:
        The pruned model, its plan, the proof, the measurement and the record of the report.

    Raises:
        ConfigError: An unknown name, or a value out of range.
        TraceError: The model does not run on the example inputs.
        DataError: Data are missing or empty, or weights are not finite.
        BudgetError: The budget cannot be met; the message names the nearest that can.
        SurgeryError: The pruned model is not the masked one; nothing was changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> prune(net, torch.randn(4, 8), amount=0.5).model[0].out_features
        16
    """
    _check_names("prune", selection, (prune, make_plan), but=("selection", "graph", "left"))
    if not isinstance(measure, bool):
        _check_names(
            "measure", measure, (measure_cost,), but=("model", "example_inputs", "against")
        )
        measure_cost(nn.Identity(), torch.zeros(1), **measure)  # refuses values out of range
    check_judge(evaluate, metric)
    said = {
        "criterion": criterion,
        "scope": scope,
        "recovery": recovery,
        "schedule": schedule,
        **selection,
    }
    chosen = removing(method, amount)
    if amount is None and not keep:
        amount = chosen.amount
    how = settled(chosen, said)
    recovery, schedule = how.pop("recovery"), how.pop("schedule")
    targets = _targets(amount, keep, how.pop("overrides", None), schedule, steps)
    if len(targets) > 1 and how.get("fibred"):
        raise ConfigError(
            "fibred=True is for one step: what every head chose for itself cannot be followed "
            'through several; use schedule="one-shot"'
        )
    healers = [_shown(healer, progress) for healer in _healers(recovery)]
    several = len(targets) > 1 or len(healers) > 1
    by = criteria.find(how["criterion"])
    scored = chosen.granularity in DEPTH or bool(by.needs) or by.level == "model"
    _check_data(data, passes=len(targets) * (len(healers) + scored))
    require_numbers(model)
    with generators_kept(() if data is None else data):
        common = {"data": data, "seed": seed, **how}
        if chosen.granularity in DEPTH:
            plan = _shallower(model, example_inputs, chosen, targets, said, data, seed)
            graph, made = plan.graph, model
            if chosen.granularity == "basis":  # the model that it is a plan of is a rotated one
                assert graph is not None
                made = graph.model
                if inplace:
                    raise ConfigError(f"method {chosen.name} makes a new model: leave inplace= out")
        else:
            graph, made = trace(model, example_inputs), model
            common = {"kinds": known_kinds(chosen, graph), **common}
            plan = make_plan(graph, **common, **targets[-1])  # or all of it cannot be had
        assert graph is not None
        seen = Seen(dense=_score(evaluate, model), dense_weights=weights_of(model))
        history: list[dict[str, Any]] = []
        for number, target in enumerate(targets, 1):
            before, done = made, plan if history else None
            try:
                if number < len(targets) or done is not None:
                    plan, made, step = _next(graph, done, before, target, common)
                else:
                    made, step = plan.apply(before), plan
            except BudgetError as error:
                if number == len(targets):
                    raise
                log.info("step %d of %d is passed over: %s", number, len(targets), error)
                continue
            proof = _proven(step, before, made) if verify and step is not None else None
            if number == len(targets):
                seen = replace(
                    seen,
                    pruned=_score(evaluate, made) if healers else None,
                    pruned_weights=weights_of(made, like=seen.dense_weights),
                )
            with healing_step(number, len(targets)):
                healing = [
                    in_turn(healer, f"{number}-{k}" if several else "").heal(
                        made, plan, data, model
                    )
                    for k, healer in enumerate(healers)
                ]
            seen = replace(seen, healed=_score(evaluate, made))
            entry = {"step": number, **target, "removed": plan.removed, "score": seen.healed}
            history.append({**entry, "recovery": healing, "proof": proof and proof.to_dict()})
            log.info("step %d of %d: %s", number, len(targets), entry)
        if verify and len(targets) > 1:
            proof = _proven(plan, model, plan.apply(model))
        cost = _measured(made, example_inputs, model, measure)
    note = carry(made, plan)
    notes = (note, unmoved(plan, amount, keep), kept_to(keep or {}, cost))
    plan = replace(plan, notes=(*plan.notes, *filter(None, notes)))
    if healers:
        seen = replace(seen, healed_weights=weights_of(made, like=seen.dense_weights))
    asked: dict[str, Any] = {"method": _named(method), "recovery": _named(recovery)}
    asked |= {"schedule": _named(schedule), "steps": len(targets)}
    record = make_record(graph, model, plan, made, seen, cost, proof, metric, history, asked, seed)
    if inplace:
        small, made = made, _into(model, plan, made)
        if note is None:
            carry(made, plan, like=small)
    return Result(made, plan, record, proof, cost, tuple(history))


def _shallower(
    model: nn.Module,
    example_inputs: Any,
    chosen: Method,
    targets: Sequence[Mapping[str, Any]],
    said: Mapping[str, Any],
    data: Any,
    seed: int,
) -> Plan:
    """The plan of a method that leaves out whole blocks, or parts of them."""
    settings = depth_settings(said, len(targets))
    amount, keep = targets[-1]["amount"], targets[-1]["keep"]
    if chosen.granularity == "expert":
        here = experts_of(model, data, seed=seed, **settings)
    else:
        parts = chosen.granularity == "sublayer"
        here = depth_of(model, data, parts=parts, seed=seed, **settings)
    if chosen.granularity == "basis":
        return chosen.search(here, example_inputs, amount, keep)
    gaps = chosen.search(here, enough(model, here.candidates, amount, keep))
    budget = dict(keep) if keep else None
    plan = depth_plan(
        model, example_inputs, gaps, method=chosen.name, amount=amount, budget=budget, seed=seed
    )
    return replace(plan, notes=(*plan.notes, *here.notes))


def _next(
    graph: Graph,
    done: Plan | None,
    left: nn.Module,
    target: Mapping[str, Any],
    common: Mapping[str, Any],
) -> tuple[Plan, nn.Module, Plan | None]:
    """The plan after one more step, the model that it makes, and the step as a plan of ``left``."""
    if done is None:
        plan = make_plan(graph, **common, **target)
        return plan, plan.apply(left), plan
    here = trace(left, graph.example_inputs)
    plan = replan(graph, done, here, target, **common)
    return plan, *shrink(done, plan, left, here)


def _check_names(
    what: str,
    given: Iterable[str],
    functions: Sequence[Callable[..., Any]],
    but: Sequence[str],
) -> None:
    known = {name for f in functions for name in inspect.signature(f).parameters} - set(but)
    for name in given:
        if name not in known:
            raise ConfigError(unknown(f"argument of {what} called", name, known))


def _targets(
    amount: float | None,
    keep: Mapping[str, float] | None,
    overrides: Mapping[str, float] | None,
    schedule: Any,
    steps: int | None,
) -> list[dict[str, Any]]:
    """What to ask ``plan`` for, step by step; the last is what the user asked for, untouched."""
    single = schedules.find(schedule, 0.0).name == "one-shot"
    steps = steps if steps is not None else 1 if single else _STEPS
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"steps={steps!r} must be a whole number of at least 1")
    if single and steps > 1:
        raise ConfigError(
            f'steps={steps} with schedule="one-shot": give a schedule that has steps, as "linear"'
        )
    final: dict[str, Any] = {"amount": amount, "keep": keep, "overrides": overrides}
    if steps == 1:
        return [final]

    def at(k: int, removed: Any) -> float:
        if not isinstance(removed, int | float) or not 0 <= removed < 1:
            raise ConfigError(f"{removed!r} is no fraction to remove, in [0, 1)")
        return schedules.find(schedule, float(removed)).amounts(steps)[k]

    return [
        {
            "amount": amount if amount is None else at(k, amount),
            "keep": keep and {name: 1 - at(k, 1 - value) for name, value in keep.items()},
            "overrides": overrides and {name: at(k, v) for name, v in overrides.items()},
        }
        for k in range(steps - 1)
    ] + [final]


def _healers(recovery: Any) -> list[Recovery]:
    if isinstance(recovery, tuple) and len(recovery) == 2 and isinstance(recovery[1], Mapping):
        return [recoveries.recovery(recovery[0], **recovery[1])]
    if isinstance(recovery, Sequence) and not isinstance(recovery, str):
        return [healer for part in recovery for healer in _healers(part)]
    if recovery is None or recovery == "none":
        return []
    healer = recoveries.recovery(recovery)
    if not isinstance(healer, Recovery):
        raise ConfigError(
            f"recovery={recovery!r}: give a name ({', '.join(recoveries.names())}), a name with "
            'options (("fine-tune", {"epochs": 3})), an object with a heal method, or a list'
        )
    return [healer]


def _shown(healer: Any, progress: bool) -> Any:
    """The recovery without its progress bar, if none are wanted."""
    if progress:
        return healer
    return changed(healer, lambda entry, value: False if entry.name == "progress" else value)


def _check_data(data: Iterable[Any] | None, passes: int) -> None:
    """Refuse an empty loader, and one that can be read only once where that is not enough."""
    if isinstance(data, torch.Tensor):
        raise DataError("data is one tensor: give batches, as a DataLoader or [(inputs, targets)]")
    if data is None or not isinstance(data, Iterable):
        return  # whoever needs data says so
    if isinstance(data, Iterator):
        if passes > 1:
            raise DataError(
                "data is an iterator, which can be read only once, but criteria and recoveries "
                "read it several times: pass a DataLoader or a list of batches"
            )
        return
    with generators_kept(data):
        if not any(True for _ in islice(data, 1)):
            raise DataError(
                "data has no batch: pass a non-empty loader (drop_last=True drops a set that is "
                "smaller than a batch)"
            )


def _proven(plan: Plan, before: nn.Module, after: nn.Module) -> Verification:
    proof = plan.verify(before, after)
    if not proof.proven:
        warnings.warn(f"the pruned model was not proven: {proof.note}", stacklevel=3)
    elif not proof.ok:
        raise SurgeryError(
            f"{proof}. This is a bug in secateur: nothing was changed. Please report it with the "
            "model; until then, ignore= the classes around that module, or verify=False"
        )
    return proof


def _score(evaluate: Evaluate | None, model: nn.Module) -> float | None:
    if evaluate is None:
        return None
    with evaluating(model):
        value = evaluate(model)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluate(model) must return a number, such as the accuracy, not {value!r}"
        ) from error


def _measured(
    model: nn.Module, example_inputs: Any, dense: nn.Module, how: bool | Mapping[str, Any]
) -> Measurement | None:
    if how is False:
        return None
    options = {} if how is True else dict(how)
    return measure_cost(model, example_inputs, against=dense, **options)


def _into(model: nn.Module, plan: Plan, made: nn.Module) -> nn.Module:
    """Make the caller's own model the pruned one."""
    plan.apply(model, inplace=True)
    fill_in(model, named_tensors(made))
    return model


def _named(value: Any) -> str | None:
    """How the user would write it, for the record."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        return f"{value[0]}({', '.join(f'{k}={v}' for k, v in value[1].items())})"
    if isinstance(value, list | tuple):
        return ", ".join(str(_named(part)) for part in value)
    if value is None or isinstance(value, str):
        return value
    return getattr(value, "__name__", None) or repr(value)
