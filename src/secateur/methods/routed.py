"""Which routed experts of a model can go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from secateur.engine.batches import require, take
from secateur.engine.calibration import checked
from secateur.engine.order import epoch_batches
from secateur.errors import PlanError
from secateur.measure.calling import device_of, to_device
from secateur.methods.depth import Depth, staying
from secateur.plan.experts import routed
from secateur.plan.gaps import Gap


def experts_of(
    model: nn.Module,
    data: Iterable[Any] | None,
    *,
    ignore: Sequence[str] = (),
    loss: Any = None,
    seed: int = 0,
) -> Depth:
    """Find the routed experts of a model, each of which may go.

    Args:
        model: With modules that hold a router and a stack of experts.
        data, ignore, loss, seed: As of ``depth_of``; the globs are over names of these modules.

    Raises:
        PlanError: The model has none.
    """
    source = epoch_batches(require(data, "Removing experts"), seed, 0)
    batches = tuple(to_device(batch, device_of(model)) for batch in checked(model, take(source)))
    counts = routed(model)
    if not counts:
        raise PlanError(
            f"no module of this {type(model).__name__} holds a router beside a stack of experts "
            "(weights of three dimensions): it has no routed experts to remove"
        )
    stay = staying(ignore, list(counts))
    may = tuple(Gap(n, experts=(j,)) for n, k in counts.items() if n not in stay for j in range(k))
    return Depth(model, tuple(counts), (), may, batches, loss=loss, seed=seed)
