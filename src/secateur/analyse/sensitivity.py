"""How much each class can lose: the metric with some of its units masked, one class at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from secateur import criteria
from secateur.engine.statistics import collect
from secateur.errors import ConfigError, DataError
from secateur.granularity.units import score
from secateur.graph import Graph, trace
from secateur.measure.calling import evaluating
from secateur.plan.masking import masked_model
from secateur.plan.plan import Plan
from secateur.plan.select import eligible
from secateur.report import Curve

AMOUNTS = (0.25, 0.5, 0.75, 0.9)


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], float],
    *,
    amounts: Sequence[float] = AMOUNTS,
    criterion: Any = "l2",
    data: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
    ignore: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Curve, ...]:
    r"""Measure the metric with the lowest-scored units of one class masked, class by class.

    Nothing is removed: the masked slices are zero while ``evaluate`` runs, and the model is as it
    was afterwards. Scores are gathered once; ``evaluate`` runs once for the dense model and once
    for every class and amount.

    Args:
        model: Any module, or its graph (then ``example_inputs`` are not used).
        example_inputs: As for ``trace``.
        evaluate: Model -> number, called in evaluation mode without gradients.
        amounts: Fractions of a class to mask, in (0, 1); at least one unit stays.
        criterion: As for ``plan``.
        data: Batches for criteria that need them.
        loss: As for ``plan``.
        ignore: Globs of what to leave out.
        kinds: Only classes of these kinds.
        seed: For criteria and statistics that draw at random.

    Returns:
        A curve a class, (fraction masked, metric), from 0 on; most sensitive first, that is by the
        metric's fall at the largest amount.

    Raises:
        ConfigError: An amount out of range, an unknown name, or ``evaluate`` gave no number.
        DataError: Data are missing, or ``evaluate`` gave NaN or infinity.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> [c.name for c in sensitivity(net, x, lambda m: -m(x).square().mean().item())]
        ['0']
    """
    given = list(amounts) if isinstance(amounts, Iterable) else []
    if not given or not all(isinstance(a, int | float) and 0 < a < 1 for a in given):
        raise ConfigError(f"amounts={amounts!r}: give fractions between 0 and 1, as [0.25, 0.5]")
    if not callable(evaluate):
        raise ConfigError(f"evaluate={evaluate!r}: give a function from a model to a number")
    wanted = sorted(set(given))
    graph = model if isinstance(model, Graph) else trace(model, example_inputs)
    chosen = criteria.find(criterion)
    classes = eligible(graph, ignore=ignore, kinds=kinds)
    statistics = None
    if chosen.needs:
        statistics = collect(graph, chosen.needs, data, loss=loss, classes=classes, seed=seed)
    scores = score(graph, classes, chosen, statistics)
    dense = _evaluated(evaluate, graph.model, "the dense model")
    curves = []
    for name, values in scores.items():
        points = [(0.0, dense)]
        for amount in wanted:
            gone = min(round(amount * len(values)), len(values) - 1)
            keep = values.argsort(stable=True).argsort() >= gone
            with masked_model(graph.model, Plan.of(graph, {name: keep})) as masked:
                found = _evaluated(evaluate, masked, f"{gone} masked units of {name}")
            points.append((gone / len(values), found))
        curves.append(Curve(name, tuple(dict(points).items())))
    return tuple(sorted(curves, key=lambda c: -abs(c.points[-1][1] - dense)))


def _evaluated(evaluate: Callable[[nn.Module], float], model: nn.Module, what: str) -> float:
    with evaluating(model):
        found = evaluate(model)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluate(model) must return a number, such as the accuracy, not {found!r}"
        ) from error
    if not math.isfinite(value):
        raise DataError(f"evaluate gave {value} with {what}: look for NaN in data or weights")
    return value
