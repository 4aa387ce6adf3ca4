"""Accuracy against measured speed-up: prune to several ratios and put the results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.errors import ConfigError
from secateur.prune import prune
from secateur.report import Point
from secateur.result import Result


def pareto(
    model: nn.Module,
    example_inputs: Any,
    *,
    amounts: Sequence[float] = (),
    keeps: Sequence[Mapping[str, float]] = (),
    **options: Any,
) -> tuple[Result, ...]:
    """Prune the same model to several amounts or budgets; each report shows all of them.

    Args:
        model: Any module; it stays as it is.
        example_inputs: As for ``prune``.
        amounts: Fractions of the units to remove.
        keeps: Budgets, as ``keep`` of ``prune``.
        **options: Everything else that ``prune`` takes; ``evaluate`` is needed.

    Returns:
        A result for every amount and budget, whose report's Pareto figure holds all.

    Raises:
        ConfigError: Nothing to compare, or nothing to compare by.

    Example:
        >>> results = pareto(net, x, amounts=[0.25, 0.5], evaluate=accuracy, data=loader)
        >>> [point.ratio for point in results[0].report.pareto]
        [0.25, 0.5]
    """
    if not amounts and not keeps:
        raise ConfigError('give amounts=[0.25, 0.5, ...] or keeps=[{"macs": 0.5}, ...]')
    if options.get("evaluate") is None or options.get("measure") is False:
        raise ConfigError("accuracy against speed-up needs evaluate=, and measure= left on")
    if options.get("inplace"):
        raise ConfigError("inplace=True would prune what was pruned before: leave it out")
    for name in ("amount", "keep"):
        if name in options:
            raise ConfigError(f"{name}= is for one run: give {name}s=[...]")
    asked: list[tuple[float, str, dict[str, Any]]] = [
        *((a, f"{a:.0%} of the units", {"amount": a}) for a in amounts),
        *((1 - min(k.values(), default=1), _label(k), {"keep": k}) for k in keeps),
    ]
    results = [prune(model, example_inputs, **goal, **options) for _, _, goal in asked]
    points = [
        Point(ratio, result.report.after.accuracy, _speedup(result), label=label)
        for (ratio, label, _), result in zip(asked, results, strict=True)
        if result.report.after.accuracy is not None
    ]
    return tuple(
        result.described(pareto=tuple(_chosen(p, p is points[k]) for p in points))
        for k, result in enumerate(results)
    )


def _label(keep: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.0%} of {name}" for name, value in keep.items())


def _speedup(result: Result) -> float:
    cost = result.measurement
    if cost is None or cost.against is None or cost.against.speedup is None:
        raise ConfigError("latency was not measured: leave repeats= above 0, and use a real device")
    return cost.against.speedup.ratio


def _chosen(point: Point, chosen: bool) -> Point:
    return Point(point.ratio, point.accuracy, point.speedup, chosen, point.label)
