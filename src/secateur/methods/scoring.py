"""Scores of the elements of a model's weights, by any criterion that scores elements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur import criteria
from secateur.criteria.registry import Criterion
from secateur.engine.ranks import require_whole
from secateur.engine.statistics import Stats, collect
from secateur.errors import ConfigError
from secateur.granularity.registry import Units
from secateur.granularity.units import lamp_scale


def element_scores(
    criterion: Any,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    data: Iterable[Any] | None = None,
    loss: Any = None,
    generator: torch.Generator | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    units: Units | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Score every element of the parameters.

    Args:
        criterion: A name, (name, options), a ``Criterion``, or "gradient" (the size of the
            gradient at hand) and "random".
        model: Whose parameters they are.
        parameters: Name -> parameter.
        data: For criteria that measure something.
        loss: Of (output, target).
        generator: For "random".
        gradients: Gradients at hand; spares a pass over the data where no more is needed.
        seed: Of statistics that draw.
        units: For criteria that score units; all elements of a unit get its score.
        initial: What the parameters were when training began.

    Raises:
        ConfigError: A criterion that does not score what is removed.
        DataError: Statistics are needed and there are no data.
    """
    if criterion == "random":
        return {n: _uniform(p, generator) for n, p in parameters.items()}
    if criterion == "gradient":
        assert gradients is not None
        return {n: gradients[n].abs().float() for n in parameters}
    found: Criterion = criteria.find(criterion)
    if found.level == "model":
        require_whole(model, f"criterion {found.name!r}")
        of_model: Callable[..., Any] = found.function
        return of_model(
            model, parameters, data=data, loss=loss, generator=generator, **found.options
        )
    if found.level != "element":
        if units is None:
            raise ConfigError(
                f"criterion {found.name!r} scores a {found.level}, not single weights: use it with "
                "granularity='channel', or choose one of elements"
            )
        if found.needs:
            raise ConfigError(
                f"criterion {found.name!r} measures activations of a {found.level}, which is not "
                "done while training: use it in sec.plan"
            )
        scored = units.score(found, parameters)
        if not scored:
            raise ConfigError(f"criterion {found.name!r} finds nothing to score in this model")
        return units.spread(scored, alike=True)
    at_hand = {"initial": initial}
    if found.needs <= {"grad", "initial"}:
        at_hand["grad"] = gradients
    known = {need: of for need, of in at_hand.items() if of and need in found.needs}
    stats: Mapping[str, Stats] = {}
    if needs := found.needs - known.keys():
        require_whole(model, f"criterion {found.name!r}")
        stats = collect(
            model, needs, data, loss=loss, parameters=list(parameters), seed=seed
        ).tensors
    scores = {}
    for n, p in parameters.items():
        more = {need: of[n] for need, of in known.items()}
        scores[n] = found(p.detach(), Stats(**{**vars(stats.get(n, Stats(n))), **more}))
    if found.normalizer == "lamp":
        scores = {n: lamp_scale(s) for n, s in scores.items()}
    return scores


def needs_initial(criterion: Any) -> bool:
    """Whether a criterion compares weights with what they were when training began."""
    if criterion is None or criterion in ("random", "gradient"):
        return False
    return "initial" in criteria.find(criterion).needs


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn on the CPU: the same numbers on every device and rank.
    return torch.rand(like.shape, generator=generator).to(like.device)
