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
    keep = units.constrained(by_unit)
    if keep is None:
        keep = {n: keep_top(by_unit[n], k) for n, k in _counts(
            by_unit, units, amount, scope, 0 if allow_empty else 1
        ).items()}  # fmt: skip
    return units.spread(keep)


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
    names = list(scores)
    flat = torch.cat([scores[n].float() for n in names])
    which = torch.repeat_interleave(
        torch.arange(len(names)), torch.tensor([len(scores[n]) for n in names])
    ).to(flat.device)
    size = torch.tensor([units.sizes[n] for n in names], device=flat.device)[which]
    # The best units of each layer come first where none may be emptied; the rest by score.
    first = torch.zeros_like(which)
    if least:
        start = 0
        for n in names:
            if len(scores[n]):
                first[start + int(scores[n].argmax())] = 1
            start += len(scores[n])
    order = flat.argsort(descending=True, stable=True)
    order = order[first[order].argsort(descending=True, stable=True)]
    budget = round(float(size.sum()) * (1 - amount))
    kept = order[: _nearest(size[order], budget)]
    count = torch.bincount(which[kept], minlength=len(names)).tolist()
    return {n: max(int(k), least) for n, k in zip(names, count, strict=True)}


def _nearest(sizes: Tensor, budget: int) -> int:
    """How many of the sizes, from the first on, sum up to nearest the budget."""
    total = sizes.cumsum(0)
    number = int((total <= budget).sum())
    before = int(total[number - 1]) if number else 0
    if number < len(sizes) and int(total[number]) - budget < budget - before:
        number += 1
    return number
