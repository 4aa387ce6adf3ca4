"""Criteria that look at a whole model at once, as criteria of its elements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.criteria import Criterion
from secateur.engine.statistics import Statistics, Stats
from secateur.graph import Graph, UnitClass


def by_element(
    graph: Graph,
    classes: Sequence[UnitClass],
    criterion: Criterion,
    data: Iterable[Any] | None,
    loss: Callable[..., Tensor] | None,
    seed: int,
) -> tuple[Criterion, Statistics]:
    """A criterion that reads off scores of elements, and these scores.

    Args:
        graph: Whose model is scored; it stays as it is.
        classes: The parameters that they touch are scored.
        criterion: Of level ``model``.
        data, loss, seed: For the criterion.
    """
    touched = {m.tensor for c in classes for m in c.members}
    parameters = {
        n: p
        for n, p in graph.model.named_parameters()
        if n in touched and p.dim() > 1 and p.is_floating_point()
    }
    generator = torch.Generator().manual_seed(seed)
    scores = criterion.function(
        graph.model, parameters, data=data, loss=loss, generator=generator, **criterion.options
    )
    found = {name: Stats(name, score=value) for name, value in scores.items()}
    plain = replace(criterion, function=_scored, level="element", needs=frozenset({"score"}))
    return replace(plain, options={}), Statistics(found)


def _scored(weight: Tensor, stats: Stats) -> Tensor:
    return stats.score  # type: ignore[no-any-return]
