"""``plan``: from scores and a budget to what goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur import criteria
from secateur import scope as scopes
from secateur.engine.statistics import Statistics, collect
from secateur.errors import BudgetError, ConfigError, PlanError
from secateur.granularity import units
from secateur.granularity.whole import by_element
from secateur.graph import Graph, UnitClass
from secateur.graph.forward import uncollected
from secateur.graph.show import did_not_run, kind_of
from secateur.names import match_names, unknown
from secateur.plan import budget
from secateur.plan.plan import Plan
from secateur.plan.show import narrow
from secateur.plan.timing import Clock
from secateur.scope.order import Limits, Order, order

HEADS = {"head", "kv_head", "query"}


def plan(
    graph: Graph,
    amount: float | None = None,
    *,
    keep: Mapping[str, float] | None = None,
    criterion: Any = "l2",
    scope: Any = "uniform",
    data: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
    kinds: str | Sequence[str] | None = None,
    statistical: bool = True,
    fibred: bool = False,
    max_ratio: float | None = None,
    min_width: int = 1,
    round_to: int | None = None,
    reduction: str | None = None,
    normalizer: str | None = None,
    statistics: Statistics | None = None,
    latency: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    check: bool = True,
    left: Mapping[str, Tensor] | None = None,
) -> Plan:
    r"""Decide which units go.

    Give ``amount`` or ``keep``. Units compete inside the pools that ``scope`` makes of the classes,
    and each pool loses the same fraction: that of ``amount``, or the smallest that meets ``keep``.

    Args:
        graph: From ``trace``.
        amount: Fraction of the units to remove, in [0, 1). Removing half of the inputs and outputs
            of a layer removes three quarters of its weights.
        keep: Budget instead: fraction in (0, 1] to keep of ``params``, ``macs``, ``memory``
            (weights, buffers and the largest operator) or measured ``latency`` (of a forward on the
            example inputs; 0.6 = 0.6 of the dense model's time); met within 2 % (latency: as well
            as it can be measured, see ``plan.timing``). Several budgets are all met.
        criterion: Name, (name, options), ``Criterion``, or function of (weight, stats).
        scope: ``uniform``, ``global``, ``isomorphic``, or a function from (graph, classes) to
            pools.
        data: Batches, for criteria that need them: (inputs, target), or dicts of keyword arguments.
        loss: Function of (output, target) for criteria that need a gradient; default: the output's
            own ``loss``, else cross-entropy. For dict batches it is called with (output, batch).
        ignore: Globs over names of modules, parameters or classes: what these make stays whole.
        overrides: Glob -> amount for the classes that these modules make; the others share the
            rest.
        kinds: Only classes of these kinds (``channel``, ``head``, ...), or ``"all"``; default: all,
            except the dimensions of heads that can go whole, which would thin them twice.
        statistical: False leaves alone classes whose removal differs from zeroing (widths under a
            layer norm).
        fibred: Choose anew in every head or group which of its own dimensions or channels go, the
            same number in each; such plans are applied one after the other, not composed.
        max_ratio: Largest fraction of a class that may go; default: 0.9 where classes compete, or
            more if the budget needs it.
        min_width: Fewest units of a class that stay.
        round_to: Keep a multiple of this many channels; classes with fewer stay whole.
        reduction: How scores of coupled tensors become one: sum, mean, max, min, prod, first.
        normalizer: How scores of a class are scaled before classes are compared: none, sum, mean,
            max, std, gaussian, lamp, relative, size (scores per weight).
        statistics: Gathered already by ``engine.statistics.collect``, instead of ``data``.
        latency: Seconds of a forward of a model; default: dense and pruned are timed in turn, on a
            CPU in processor time, which other programs change little.
        seed: For criteria and statistics that draw at random.
        check: Solve for the changes of Python attributes too; classes that cannot be made smaller
            are given back, noted, and the budget is met without them.
        left: Masks of what an earlier plan left: a budget counts the rest as gone.

    Returns:
        The plan. The same arguments give the same plan, but for what a clock says.

    Raises:
        ConfigError: An unknown name, or a value out of range.
        DataError: Data are missing, empty, or not finite; weights are not finite.
        PlanError: Nothing can be pruned.
        BudgetError: The budget cannot be met; the message names the nearest that can.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan(trace(net, torch.randn(2, 4)), amount=0.5).removed
        {'0': 4}
    """
    _check_numbers(amount, keep, overrides, max_ratio, min_width, round_to)
    chosen = criteria.find(criterion)
    if "seed" in criteria.registry._options_of(chosen.function):
        chosen = chosen.with_options(**{"seed": seed, **chosen.options})
    pools_of = scopes.find(scope)
    classes = eligible(graph, ignore=ignore, kinds=kinds, statistical=statistical)
    fixed_amounts = _overridden(graph, classes, overrides or {})
    read_off = chosen
    if chosen.level == "model":
        read_off, statistics = by_element(graph, classes, chosen, data, loss, seed)
    elif chosen.needs and statistics is None:
        statistics = collect(graph, chosen.needs, data, loss=loss, classes=classes, seed=seed)
    scores = units.score(
        graph,
        classes,
        read_off,
        statistics,
        reduction=reduction,
        normalizer=normalizer,
        fibred=fibred,
    )
    scored = [c for c in classes if c.name in scores]
    if not scored:
        raise PlanError(
            f"criterion {chosen.name} has nothing to say about any of the {len(classes)} classes "
            f"of this model ({_remedy(chosen)})"
        )
    notes, clock = _left_out(chosen, classes, scored), Clock(graph, latency)
    made_by = {
        "amount": amount,
        "budget": dict(keep) if keep else None,
        "criterion": chosen.name,
        "options": _plain(chosen.options),
        "reduction": reduction or chosen.reduction,
        "normalizer": normalizer or chosen.normalizer,
        "scope": scope if isinstance(scope, str) else getattr(scope, "__name__", str(scope)),
        "ignore": list(ignore),
        "overrides": dict(overrides or {}),
        "kinds": kinds if isinstance(kinds, str | None) else list(kinds),
        "statistical": statistical,
        "fibred": fibred,
        "max_ratio": max_ratio,
        "min_width": min_width,
        "round_to": round_to,
        "samples": statistics.samples if statistics else 0,
        "seed": seed,
        "torch": torch.__version__,
    }

    short: list[str] = []

    def limits(ratio: float) -> Limits:
        return Limits(max_ratio=ratio, min_width=min_width, round_to=round_to or 1)

    def masks_for(candidates: list[UnitClass], ratio: float) -> dict[str, Tensor]:
        own = [c for c in candidates if c.name in fixed_amounts]
        shared = [c for c in candidates if c.name not in fixed_amounts]
        single = order([[c] for c in own], scores, limits(1.0 if max_ratio is None else max_ratio))
        amounts = torch.tensor([fixed_amounts[n] for n in single.classes], dtype=torch.float64)
        fixed = single.masks(single.removed(single.at < amounts[single.which] - 1e-9))
        pools = [list(p) for p in pools_of(graph, shared)]
        ordered = order(pools, scores, limits(ratio))
        if keep:
            go = budget.meet(graph, keep, ordered, fixed, clock=clock, apply=small, left=left)
        else:
            go, short[:] = _amount(ordered, pools, float(amount or 0.0), limits(ratio))
        return chosen.settled({**fixed, **ordered.masks(ordered.removed(go))}, statistics)

    def small(masks: Mapping[str, Tensor]) -> nn.Module:
        return Plan.of(graph, masks).apply()

    def select(candidates: list[UnitClass]) -> dict[str, Tensor]:
        if max_ratio is not None:
            return masks_for(candidates, max_ratio)
        try:
            return masks_for(candidates, 1.0 if scope == "uniform" else 0.9)
        except BudgetError:
            return masks_for(candidates, 1.0)

    with uncollected():
        made = _prepared(graph, select, scored, made_by, notes, keep, check=check)
    timed = budget.timed_notes(graph, keep or {}, made.keep, clock)
    left_out = filter(None, [did_not_run(graph)])
    return replace(made, notes=(*made.notes, *short, *narrow(made), *timed, *left_out))


def _prepared(
    graph: Graph,
    select: Callable[[list[UnitClass]], dict[str, Tensor]],
    candidates: list[UnitClass],
    made_by: Mapping[str, Any],
    notes: tuple[str, ...],
    keep: Mapping[str, float] | None,
    *,
    check: bool,
) -> Plan:
    """The plan with its edits; what is given back is replaced by more of the rest."""
    given_back: tuple[str, ...] = ()
    for _ in range(4):
        result = replace(Plan.of(graph, select(candidates), **made_by), notes=notes + given_back)
        if not check:
            return result
        wanted, ready = result, result.prepared()
        lost = [n for n in wanted.keep if n not in ready.keep]
        if not lost or not keep:
            return ready
        given_back = tuple(n for n in ready.notes if n not in notes)
        candidates = [c for c in candidates if c.name not in lost]
    return ready


def eligible(
    graph: Graph,
    *,
    ignore: Sequence[str] = (),
    kinds: str | Sequence[str] | None = None,
    statistical: bool = True,
) -> list[UnitClass]:
    """The classes from which ``plan`` may take units.

    Raises:
        ConfigError: A glob or a kind that matches nothing.
        PlanError: Nothing is left.
    """
    if isinstance(ignore, str):
        ignore = [ignore]
    known = {c.kind for c in graph.free.values()}
    if isinstance(kinds, str):
        kinds = sorted(known) if kinds == "all" else [kinds]
    if not isinstance(kinds, Iterable | None):
        raise ConfigError(f"kinds={kinds!r} must name kinds of classes, as 'channel'")
    for kind in kinds or ():
        if kind not in known:
            raise ConfigError(unknown("kind of class in this model", kind, {*known, "all"}))
    ignored = _matching(graph, ignore, "ignore")
    free, parameters = list(graph.free.values()), dict(graph.model.named_parameters())
    found = [
        c
        for c in free
        if c.name not in ignored
        and (c.kind in kinds if kinds is not None else True)
        and (statistical or c.exact)
        and any(m.tensor in parameters for m in c.members)  # buffers alone are not worth it
    ]
    if kinds is None:
        whole = {(m.tensor, m.axis) for c in found if c.kind in HEADS for m in c.members}
        found = [
            c
            for c in found
            if c.kind != "head_dim" or not any((m.tensor, m.axis) in whole for m in c.members)
        ]
    if not found:
        why = [f"{len(free)} of {len(graph.classes)} classes are free"]
        if ignored:
            why.append(f"{len(ignored)} are ignored")
        if not statistical:
            why.append(f"{sum(not c.exact for c in free)} are statistical (statistical=False)")
        why += dict.fromkeys(f"locked: {kind_of(c)}" for c in graph.classes.values() if c.locked)
        why += (f"no rule for {op} (secateur.graph.rule)" for op in graph.unknown)
        raise PlanError(f"nothing can be pruned: {', '.join(why)}; see print(graph)")
    return found


def _matching(graph: Graph, patterns: Iterable[str], argument: str) -> dict[str, str]:
    """Class name -> the glob that it matches: by its name, or that of anything that makes it."""
    owners = {c.name: _makers(c) for c in graph.classes.values()}
    known = {n for names in owners.values() for n in names}
    known |= {n for n, _ in graph.model.named_modules() if n} | set(graph.shapes)
    found: dict[str, str] = {}
    for pattern, names in match_names(patterns, known).items():
        if not names:
            raise ConfigError(
                f"{argument}: " + unknown("module, parameter or class", pattern, known)
            )
        hit = set(names)
        for c, makers in owners.items():
            if c in graph.free and makers & hit:
                found.setdefault(c, pattern)
    return found


def _makers(c: UnitClass) -> set[str]:
    """The class, the parameters that make it, their modules, and the modules that hold those."""
    names = {c.name}
    for m in c.members:
        if m.produces:
            parts = m.tensor.split(".")
            names |= {".".join(parts[:k]) for k in range(1, len(parts) + 1)}
    return names


def _overridden(
    graph: Graph, classes: Sequence[UnitClass], overrides: Mapping[str, float]
) -> dict[str, float]:
    names = {c.name for c in classes}
    matched = _matching(graph, overrides, "overrides")
    return {n: overrides[p] for n, p in matched.items() if n in names}


def _amount(
    ordered: Order, pools: list[list[UnitClass]], amount: float, limits: Limits
) -> tuple[Tensor, list[str]]:
    """The bundles of the first ``amount`` of every pool, and a note if that is less than asked.

    Where each class is a pool of its own, it goes to the nearest width it may have.
    """
    go = ordered.at < amount - 1e-9
    removed = sum(ordered.removed(go).values())
    classes = [c for pool in pools for c in pool]
    total = sum(c.size for c in classes)
    shared = any(len(pool) > 1 for pool in pools)
    rounding = sum(min(limits.step(c), c.size - 1) / 2 for c in classes)
    least = (1 - budget.TOLERANCE) * amount * total if shared else amount * total - rounding - 0.5
    if amount * total < 1 or (removed >= least and (len(go) or not total)):
        return go, []
    went = f"amount={amount}: {removed} of {total} units ({removed / total:.1%}) go"
    if not len(go) or (shared and go.all()):
        raise BudgetError(
            f"{went}, with every class at its minimum width, so it cannot be met. Lower min_width "
            f"or round_to, raise max_ratio (now {limits.max_ratio:g}), or ask for amount <= "
            f"{removed / total:.3f}"
        )
    return go, [f"{went}: min_width, round_to or max_ratio hold some classes back"]


def _left_out(
    chosen: criteria.Criterion, classes: Sequence[UnitClass], scored: Sequence[UnitClass]
) -> tuple[str, ...]:
    missing = [c.name for c in classes if c not in scored]
    if not missing:
        return ()
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return (f"criterion {chosen.name} cannot score {shown}: left whole",)


def _remedy(chosen: criteria.Criterion) -> str:
    match chosen.level:
        case "norm":
            return 'it reads batch norms, and these classes have none: use criterion="l2"'
        case "class":
            return f'no {" or ".join(sorted(chosen.needs))} could be measured: use criterion="l2"'
    return "no parameter of at least two dimensions makes them"


def _check_numbers(
    amount: float | None,
    keep: Mapping[str, float] | None,
    overrides: Mapping[str, float] | None,
    max_ratio: float | None,
    min_width: int,
    round_to: int | None,
) -> None:
    if (amount is None) == (not keep):
        raise ConfigError(
            'give either amount= (fraction of units removed) or keep= (a budget, as {"macs": 0.5})'
        )
    for what, asked, as_in in (("keep", keep, "macs"), ("overrides", overrides, "layer1.*")):
        if asked is not None and not isinstance(asked, Mapping):
            raise ConfigError(f'{what}={asked!r} must be a dict, as {{"{as_in}": 0.5}}')
    given = {f"overrides[{k!r}]": v for k, v in (overrides or {}).items()}
    for what, value in (given if amount is None else {"amount": amount, **given}).items():
        if not (_number(value) and 0 <= value < 1):
            raise ConfigError(f"{what}={value!r} must be in [0, 1): it is the fraction removed")
    for metric, value in (keep or {}).items():
        if metric not in budget.METRICS:
            raise ConfigError(unknown("budget", metric, budget.METRICS))
        if not (_number(value) and 0 < value <= 1):
            raise ConfigError(
                f"keep[{metric!r}]={value!r} must be in (0, 1]: it is the fraction that stays"
            )
    if max_ratio is not None and not (_number(max_ratio) and 0 <= max_ratio <= 1):
        raise ConfigError(f"max_ratio={max_ratio!r} must be in [0, 1]")
    for name, count in (
        ("min_width", min_width),
        ("round_to", 1 if round_to is None else round_to),
    ):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name}={count!r} must be a whole number of at least 1")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    simple = (str, int, float, bool, type(None))
    return {k: v if isinstance(v, simple) else repr(v) for k, v in options.items()}
