"""The masks before the first step: scored once, or in rounds on what is left."""

from __future__ import annotations

import torch

from secateur.engine import ranks
from secateur.training.handle import Handle


def densities(amount: float, rounds: int, linear: bool) -> list[float]:
    """What is left after each round, down to ``1 - amount``.

    Example:
        >>> [round(d, 3) for d in densities(0.75, 2, False)], densities(0.75, 2, True)
        ([0.5, 0.25], [0.625, 0.25])
    """
    end = 1 - amount
    if linear:
        return [1 - amount * k / rounds for k in range(1, rounds + 1)]
    return [end ** (k / rounds) for k in range(1, rounds)] + [end]


@torch.no_grad()
def first_masks(handle: Handle) -> None:
    """Choose the masks of a method that prunes before the first step.

    Each round scores the network with what earlier rounds masked at zero. What is masked stays so,
    unless the method lets it compete again, by the score of its dense weight (``revive``).
    """
    method, moment = handle.method, handle.moment
    amount = moment.target if handle.schedule is None else handle.schedule.at(0.0)
    dense = {n: p.detach().clone() for n, p in moment.parameters.items()}
    for density in densities(amount, method.rounds, method.linear_rounds):
        try:
            if method.rounds > 1:
                for n, p in moment.parameters.items():
                    p.mul_(moment.masks[n])
            with torch.enable_grad():
                if method.revive:
                    scores = _with_dense(handle, dense)
                else:
                    scores = handle.score(method.first or method.criterion, None)
                    scores = handle.below_masked(scores)
        finally:
            for n, p in moment.parameters.items():
                p.copy_(dense[n])
        moment.masks = handle.chosen(scores, 1 - density, method.first_scope)
    moment.amount = amount
    empty = [n for n, m in moment.masks.items() if not bool(m.any())]
    if empty:
        handle.notes.append(f"nothing is left of {', '.join(empty)}")


def _with_dense(handle: Handle, dense: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores in which the gradient is of the masked network and the weight is the dense one."""
    from secateur import criteria
    from secateur.engine.statistics import Stats, collect

    moment, sources = handle.moment, handle.sources
    criterion = criteria.find(handle.method.criterion)
    ranks.require_whole(moment.model, f"criterion {criterion.name!r}")
    with ranks.together():
        measured = collect(
            moment.model,
            criterion.needs,
            sources.data,
            loss=sources.loss,
            parameters=list(moment.parameters),
            seed=sources.seed,
        ).tensors
    return {n: criterion(w, measured.get(n, Stats(n))) for n, w in dense.items()}
