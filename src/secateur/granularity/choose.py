"""From scores of elements to masks: units compete inside their scope, exactly so many stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.engine.masks import keep_top
from secateur.errors import DataError
from secateur.granularity.registry import Units
from secateur.scope.allocation import find


def choose(
    scores: Mapping[str, Tensor],
    units: Units,
    amount: float,
    scope: Any = "uniform",
    *,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """The masks of the elements that stay.

    Counts are exact: of each layer the nearest to its density (the largest remainders go up, so
    that the whole is exact too), or of all layers together where the scope is ``"global"``. Ties go
    to the lower index. A layer is never emptied unless asked: its best unit stays.

    Args:
        scores: Parameter -> scores of its elements, higher = keep; -inf goes first.
        units: What is chosen.
        amount: Fraction of the elements that goes.
        scope: Name of an allocation, a function from (shapes, amount) to densities, or "global".
        allow_empty: Whether a layer may lose everything.

    Returns:
        Parameter -> bool mask, on the device of its scores.

    Raises:
        DataError: Scores that are NaN.

    Example:
        >>> from secateur.granularity.registry import units
        >>> weights = {"weight": torch.tensor([[4.0, 1.0], [2.0, 3.0]])}
        >>> choose(weights, units("element", weights), 0.5)["weight"]
        tensor([[ True, False],
                [False,  True]])
    """
    for name, values in scores.items():
        if bool(values.isnan().any()):
            raise DataError(f"the scores of {name} hold NaN: look at its weights and gradients")
    by_unit = units.reduce(scores)
    return units.spread(keep_units(by_unit, units, amount, scope, allow_empty=allow_empty))


def keep_units(
    scores: Mapping[str, Tensor],
    units: Units,
    amount: float,
    scope: Any = "uniform",
    *,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """The units that stay, by space, given their scores; the rest as in ``choose``.

    Example:
        >>> from secateur.granularity.registry import units
        >>> rows = units("row", {"weight": torch.ones(3, 2)})
        >>> keep_units({"weight": torch.tensor([1.0, 3.0, 2.0])}, rows, 1 / 3)
        {'weight': tensor([False,  True,  True])}
    """
    keep = units.constrained(scores)
    if keep is not None:
        return keep
    counts = _counts(scores, units, amount, scope, 0 if allow_empty else 1)
    return {n: keep_top(scores[n], k) for n, k in counts.items()}


def spared(
    scores: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    units: Units,
    amount: float,
    scope: Any = "uniform",
) -> list[str]:
    """Parameters of which one unit stays only because no layer may be emptied.

    Example:
        >>> from secateur.granularity.registry import units
        >>> scores = {"a": torch.tensor([[4.0, 3.0]]), "b": torch.tensor([[1.0, 2.0]])}
        >>> elements = units("element", scores)
        >>> spared(scores, choose(scores, elements, 0.5, "global"), elements, 0.5, "global")
        ['b']
    """
    lone = [n for n in units.counts if n in masks and int(masks[n].sum()) <= units.sizes[n]]
    if not any(units.counts[n] > 1 for n in lone):
        return []
    free = choose(scores, units, amount, scope, allow_empty=True)
    return [n for n in lone if not bool(free[n].any())]


def _counts(
    scores: Mapping[str, Tensor], units: Units, amount: float, scope: Any, least: int
) -> dict[str, int]:
    """How many units of each space stay."""
    allocate = find(scope)
    if allocate is None:
        return _global(scores, units, amount, least)
    densities = allocate(units.shapes, amount)
    exact = {n: min(max(densities[n], 0.0), 1.0) * units.counts[n] for n in scores}
    counts = {n: int(x + 1e-9) for n, x in exact.items()}
    rest = round(sum(exact.values())) - sum(counts.values())
    by_remainder = sorted(exact, key=lambda n: counts[n] - exact[n])
    for name in by_remainder[: max(rest, 0)]:
        counts[name] += 1
    return {n: min(max(k, least), units.counts[n]) for n, k in counts.items()}


def _global(
    scores: Mapping[str, Tensor], units: Units, amount: float, least: int
) -> dict[str, int]:
    names = [n for n in scores if len(scores[n])]
    if not names:
        return dict.fromkeys(scores, 0)
    total = sum(units.sizes[n] * len(scores[n]) for n in names)
    budget = round(total * (1 - amount))
    # The best units of each layer stay where none may be emptied; the others compete.
    best = {n: int(scores[n].argmax()) for n in names} if least else {}
    others = {n: _without(scores[n].float(), best.get(n)) for n in names}
    taken = sum(units.sizes[n] for n in best)
    flat = torch.cat(list(others.values()))
    if len({units.sizes[n] for n in names}) == 1:
        alike = torch.full((len(flat),), units.sizes[names[0]])
        mask = keep_top(flat, _nearest(alike, budget - taken))
    else:
        order = flat.argsort(descending=True, stable=True)
        size = torch.cat([torch.full((len(s),), units.sizes[n]) for n, s in others.items()])
        mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        mask[order[: _nearest(size.to(order.device)[order], budget - taken)]] = True
    counts = [int(m.sum()) for m in mask.split([len(s) for s in others.values()])]
    return {
        **dict.fromkeys(scores, 0),
        **{n: k + least for n, k in zip(names, counts, strict=True)},
    }


def _without(values: Tensor, place: int | None) -> Tensor:
    return values if place is None else torch.cat([values[:place], values[place + 1 :]])


def _nearest(sizes: Tensor, budget: int) -> int:
    """How many of the sizes, from the first on, sum up to nearest the budget."""
    total = sizes.cumsum(0)
    number = int((total <= budget).sum())
    before = int(total[number - 1]) if number else 0
    if number < len(sizes) and int(total[number]) - budget < budget - before:
        number += 1
    return number
