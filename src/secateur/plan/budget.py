"""What a plan costs, as closed forms over the numbers of units kept, and how a budget is met."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, ConfigError
from secateur.graph import Graph
from secateur.graph.classes import Axis, axis_mask
from secateur.names import unknown
from secateur.plan.timing import TOLERANCE, Clock
from secateur.scope.order import Order

_LITTLE = 0.25  # MACs below this part of the asked latency are worth a word
METRICS = ("params", "macs", "memory", "latency")
_TRIES = 400  # other choices tried when the budget falls inside a large bundle
Term = tuple[tuple[Axis, ...], str]
Removed = Mapping[str, int]


@dataclass(frozen=True)
class Cost:
    """One closed form: the sum over terms of a weight times the product of kept sizes.

    ``peak`` terms are not summed; only the largest of them counts (memory in use at one moment).
    """

    name: str
    terms: Mapping[tuple[Axis, ...], float]
    largest: Mapping[str, tuple[Axis, ...]]
    peak: tuple[tuple[tuple[tuple[Axis, ...], ...], float], ...] = ()

    def __call__(self, kept: Mapping[str, int], masks: Callable[[], Mapping[str, Tensor]]) -> float:
        """The cost when so many units of each class stay.

        Args:
            kept: Class name -> number of units kept; all classes of the graph.
            masks: Which ones, asked for only where the cost depends on it.
        """
        return float(self.total(kept, masks))

    def total(self, kept: Mapping[str, Any], masks: Callable[[], Mapping[str, Tensor]]) -> Any:
        """The same of numbers that may be tensors, as expected widths; differentiable in them."""
        total = sum(w * _product(axes, kept, masks) for axes, w in self.terms.items())
        if self.peak:
            total += max(
                w * sum(_product(axes, kept, masks) for axes in tensors) for tensors, w in self.peak
            )
        return total


def _product(
    axes: tuple[Axis, ...], kept: Mapping[str, Any], masks: Callable[[], Mapping[str, Tensor]]
) -> Any:
    return prod(_count(a, kept, masks) for a in axes)


def _count(axis: Axis, kept: Mapping[str, Any], masks: Callable[[], Mapping[str, Tensor]]) -> Any:
    match axis:
        case int():
            return axis
        case str():
            return kept[axis]
        case ("over", str() as name, _):
            return kept[name]
        case ("prod", *parts):
            return prod(_count(p, kept, masks) for p in parts)
        case ("sum", *parts):
            return sum(_count(p, kept, masks) for p in parts)
    found = masks()
    return int(axis_mask(axis, found, {n: m.shape[-1] for n, m in found.items()}).sum())


def cost(graph: Graph, metric: str) -> Cost:
    r"""The closed form of a metric.

    - ``params``: $\sum_t \prod_i n_i$ over parameters (tied ones once);
    - ``macs``: the same over the products that operators do (matrix products, convolutions,
      attention);
    - ``memory``: bytes of all parameters and buffers, and of the operator that reads and writes
      most.

    Raises:
        ConfigError: No such metric, or one that is not a closed form.
        BudgetError: The model has nothing that the metric counts.

    Example:
        >>> graph = trace(nn.Linear(4, 3), torch.zeros(1, 4))
        >>> dense_cost(cost(graph, "params"), graph)
        15.0
    """
    terms: Counter[tuple[Axis, ...]] = Counter()
    largest: dict[str, tuple[Axis, ...]] = {}
    peak: tuple[tuple[tuple[tuple[Axis, ...], ...], float], ...] = ()
    parameters = dict(graph.model.named_parameters())
    if metric == "params":
        for name in parameters:
            if name in graph.axes:
                terms[graph.axes[name]] += 1
                largest[name] = graph.axes[name]
    elif metric == "macs":
        for op in graph.ops:
            if op.work:
                terms[op.work] += 1
                largest[f"{op.name.split('.')[1]} in {op.module}" if op.module else op.name] = (
                    op.work
                )
    elif metric == "memory":
        tensors = {**dict(graph.model.named_buffers()), **parameters}
        for name, axes in graph.axes.items():
            if name in tensors:
                terms[axes] += tensors[name].element_size()
                largest[name] = axes
        size = next((p.element_size() for p in parameters.values()), 4)
        peak = tuple(
            {
                (
                    tuple(
                        axes
                        for axes, source in zip(op.inputs, op.sources, strict=True)
                        if not isinstance(source, str)
                    )
                    + tuple(axes for axes in op.outputs if axes is not None),
                    float(size),
                ): None
                for op in graph.ops
            }
        )
    else:
        raise ConfigError(unknown("budget", metric, METRICS))
    if not terms:
        raise BudgetError(f"keep={metric!r}: nothing in this model counts as {metric}")
    return Cost(metric, dict(terms), largest, peak)


def dense_cost(form: Cost, graph: Graph) -> float:
    """The cost with every unit kept."""
    return form(graph.sizes, lambda: {n: torch.ones(k).bool() for n, k in graph.sizes.items()})


def plan_cost(form: Cost, graph: Graph, keep: Mapping[str, Tensor]) -> float:
    """The cost of a plan's masks."""
    masks = {n: keep.get(n, torch.ones(k, dtype=torch.bool)) for n, k in graph.sizes.items()}
    return form({n: _width(m) for n, m in masks.items()}, lambda: masks)


def _width(mask: Tensor) -> int:
    """Units kept; of a class chosen anew for every unit of another, in each of these."""
    return int(mask.reshape(-1, mask.shape[-1])[0].sum())


class Budget:
    """How full each budget is when some bundles go: 1 is exactly met, above 1 is too much."""

    def __init__(
        self,
        graph: Graph,
        keep: Mapping[str, float],
        order: Order,
        fixed: Removed,
        left: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.keep, self.order, self.fixed, self.left = graph, keep, order, fixed, left
        self.gone = {n: m.shape[-1] - _width(m) for n, m in left.items()}
        self.forms = {m: cost(graph, m) for m in keep if m != "latency"}
        self.dense = {m: dense_cost(f, graph) for m, f in self.forms.items()}

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        return self.order.masks(self.order.removed(chosen))

    def fractions(self, chosen: Tensor, more: Mapping[str, Tensor]) -> dict[str, float]:
        """What is kept of each metric when the chosen bundles go and ``more`` is masked."""
        removed = self.order.removed(chosen)
        sizes = self.graph.sizes
        kept = {
            n: k - max(removed.get(n, 0) + self.fixed.get(n, 0), self.gone.get(n, 0))
            for n, k in sizes.items()
        }

        @cache
        def masks() -> dict[str, Tensor]:
            ones = {n: torch.ones(k, dtype=torch.bool) for n, k in sizes.items()}
            found = {**ones, **more, **self.order.masks(removed)}
            return {**found, **{n: found[n] & m for n, m in self.left.items()}}

        return {m: f(kept, masks) / self.dense[m] for m, f in self.forms.items()}


def meet(
    graph: Graph,
    keep: Mapping[str, float],
    order: Order,
    fixed: Mapping[str, Tensor],
    *,
    clock: Clock | None = None,
    apply: Callable[[Mapping[str, Tensor]], nn.Module] | None = None,
    left: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Which bundles go so that every budget is met, the tightest within 2 %.

    Costs only fall as more bundles go, so the first bundles that suffice are found by bisection. If
    the last of them is so large that the budget falls inside it, one class is made a little wider
    or narrower than its turn, and the others to fit.

    Args:
        graph: The graph.
        keep: Metric -> fraction of the dense model's to keep.
        order: What may go, in order.
        fixed: Masks of classes that are decided already.
        clock: For a budget of latency.
        apply: From masks to the pruned model; asked for only to measure latency.
        left: What an earlier plan left of classes; the rest is gone, whatever is chosen here. It is
            first in its class's order.

    Returns:
        Bool, one a bundle.

    Raises:
        BudgetError: It cannot be met; the message names the nearest that can, and why.
    """
    n = len(order.units)
    index = torch.arange(n)
    gone = {name: m.shape[-1] - _width(m) for name, m in fixed.items()}
    budget = Budget(graph, keep, order, gone, left or {})

    def filled(chosen: Tensor) -> float:
        fractions = budget.fractions(chosen, fixed)
        return max((f / keep[m] for m, f in fractions.items()), default=0.0)

    if filled(index < n) > 1 + TOLERANCE:
        raise BudgetError(_impossible(budget, fixed, index < n))
    # At n it may be a little above 1, within the tolerance.
    high = bisect_left(range(n), True, key=lambda k: filled(index < k) <= 1)
    chosen = index < high
    if high == 0 and budget.forms and filled(chosen) < 1 - TOLERANCE:
        least = budget.fractions(chosen, fixed)
        raise BudgetError(
            f"keep={dict(keep)} cannot be met: overrides= alone leave only "
            f"{', '.join(f'{f:.3f} of the {m}' for m, f in least.items())}. Lower them, or ask for "
            "less"
        )
    if budget.forms and high > 0:
        chosen = _close(chosen, high, filled, budget)
    if "latency" in keep:
        if apply is None or clock is None:
            raise ConfigError("a latency budget needs a way to measure: pass clock=")

        def made(count: int) -> nn.Module:
            return apply({**fixed, **budget.masks(index < count)})

        first = int(chosen.sum())
        count = clock.search(first, n, keep["latency"], made, dense=not first and not fixed)
        chosen = chosen if count == first else index < count
    return chosen


def _close(chosen: Tensor, high: int, filled: Callable[[Tensor], float], budget: Budget) -> Tensor:
    """Within tolerance of the budget: with the last bundle, without it, or with others instead."""
    under, index = filled(chosen), torch.arange(len(chosen))
    if under >= 1 - TOLERANCE:
        return chosen
    without = index < high - 1
    over = filled(without)
    if over <= 1 + TOLERANCE:
        return without
    nearest = min((over, under), key=lambda f: abs(f - 1))
    for candidate in islice(_compensated(chosen, filled, budget.order), _TRIES):
        now = filled(candidate)
        if abs(now - 1) <= TOLERANCE:
            return candidate
        nearest = min((nearest, now), key=lambda f: abs(f - 1))
    target = min(budget.keep[m] for m in budget.forms)
    raise BudgetError(
        f"keep={dict(budget.keep)} cannot be met within 2 %: units are whole, and the nearest that "
        f"can be had is keep={target * nearest:.4g}. Ask for that, or lower round_to"
    )


def _compensated(
    start: Tensor, filled: Callable[[Tensor], float], order: Order
) -> Iterator[Tensor]:
    """One class a little wider or narrower than its turn, the others made to fit: nearest first."""
    index, n = torch.arange(len(start)), len(start)
    members = [(order.which == c).nonzero().flatten() for c in range(len(order.classes))]
    gone = [int(start[m].sum()) for m in members]
    for distance in range(max((len(m) for m in members), default=0) + 1):
        for c, own in enumerate(members):
            for count in {gone[c] - distance, gone[c] + distance}:
                if not 0 <= count <= len(own):
                    continue
                base = torch.zeros_like(start).index_fill(0, own[:count], True)
                free = order.which != c
                fits = partial(_fits, filled, base, free, index)
                k = bisect_left(range(n + 1), True, key=fits)
                yield base | (free & (index < k))
                yield base | (free & (index < k - 1))


def _fits(
    filled: Callable[[Tensor], float], base: Tensor, free: Tensor, index: Tensor, k: int
) -> bool:
    return filled(base | (free & (index < k))) <= 1


def timed_notes(
    graph: Graph, keep: Mapping[str, float], masks: Mapping[str, Tensor], clock: Clock
) -> tuple[str, ...]:
    """What a reader should know of a plan that was made by a clock."""
    fraction = keep.get("latency")
    if fraction is None:
        return ()
    notes = [clock.note]
    if any(op.work for op in graph.ops):
        form = cost(graph, "macs")
        left = plan_cost(form, graph, masks) / dense_cost(form, graph)
        if left < _LITTLE * fraction:
            notes.append(
                f"only {left:.1%} of the MACs are left, for latency={fraction:g}: most of this "
                "model's time is not in its products; give larger example inputs, or keep macs"
            )
    return tuple(notes)


def _impossible(budget: Budget, fixed: Mapping[str, Tensor], everything: Tensor) -> str:
    fractions = budget.fractions(everything, fixed)
    metric = max(fractions, key=lambda m: fractions[m] / budget.keep[m])
    form, left = budget.forms[metric], fractions[metric]
    masks = {**fixed, **budget.masks(everything)}
    full = {n: masks.get(n, torch.ones(k, dtype=torch.bool)) for n, k in budget.graph.sizes.items()}
    kept = {n: _width(m) for n, m in full.items()}
    where = max(form.largest, key=lambda k: _product(form.largest[k], kept, lambda: full))
    share = _product(form.largest[where], kept, lambda: full)
    reachable = math.ceil(left * 1e4) / 1e4  # what is advised must work when it is asked for
    return (
        f'keep={{"{metric}": {budget.keep[metric]:g}}} cannot be met: with every class at its '
        f"minimum width the model still needs {left:.2%} of its {metric} (the largest part that "
        f"stays, {share:,}, is the {where}). Lower min_width or raise "
        f"max_ratio, ignore less, or ask for keep >= {reachable:.4f}"
    )
