"""Early-Bird tickets: the channels that matter are known long before training ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.masks import keep_top
from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.granularity.units import is_norm
from secateur.methods.during.network_slimming import ScaleLasso
from secateur.methods.registry import Method, method


def kept_channels(model: nn.Module, amount: float) -> Tensor:
    r"""Which channels a pruning by $|\gamma|$ over all batch norms would keep now.

    Example:
        >>> kept_channels(nn.BatchNorm1d(4), 0.5)
        tensor([ True,  True, False, False])
    """
    scales = [m.get_parameter("weight").detach().abs() for m in model.modules() if is_norm(m)]
    if not scales:
        raise ConfigError(
            f"{type(model).__name__} has no batch norm with a scale: use another method"
        )
    flat = torch.cat(scales)
    return keep_top(flat, round(len(flat) * (1 - amount)))


@dataclass(frozen=True)
class Watch(Rule):
    """Compare the mask of now with those of the last looks; remember when they agree.

    Attributes:
        every: Steps between two looks, as an epoch.
        window: How many masks must agree with the newest, itself included.
        distance: Largest fraction of channels that may differ.
    """

    every: int
    window: int
    distance: float

    def after_step(self, moment: Moment) -> None:
        if moment.step % self.every:
            return
        now = kept_channels(moment.model, moment.target)
        old = moment.state.get("seen", now.new_zeros((0, len(now))))
        if len(old) == self.window - 1 and "drawn" not in moment.state:
            moment.state["distance"] = (old != now).float().mean(1).max()
            if float(moment.state["distance"]) <= self.distance:
                moment.state["drawn"] = torch.tensor(moment.step)
        moment.state["seen"] = torch.cat([old, now[None]])[-(self.window - 1) :]


def drawn(handle: Any) -> int | None:
    """The step at which the ticket was found, or None as long as it was not."""
    found = handle.moment.state.get("drawn")
    return None if found is None else int(found)


@method(stage="during", paper="arXiv:1909.11957")
def early_bird(
    amount: float = 0.5,
    *,
    every: int = 100,
    window: int = 5,
    distance: float = 0.1,
    strength: float = 1e-4,
) -> Method:
    r"""Network Slimming that says when its mask has settled: then stop, prune, and train the rest.

    Every ``every`` steps the mask that pruning by $|\gamma|$ would give is compared with the
    ``window - 1`` before it; when the largest normalized Hamming distance is at most ``distance``,
    the ticket is drawn:

    ``for epoch in ...: train(); stop if drawn(handle)``, then ``handle.finish(remove=True,
    example_inputs=x)`` gives the small network, whose training goes on without the method.

    Args:
        amount: Fraction of the channels behind batch norms that goes.
        every: Steps between two looks; the paper looks after each epoch.
        window: Masks that must agree.
        distance: How much they may differ.
        strength: Of the lasso on $\gamma$.

    Raises:
        ConfigError: A window below 2, a negative strength; at the first look, no batch norms.

    Example:
        >>> early_bird(0.3).criterion
        'bn_scale'
    """
    if window < 2:
        raise ConfigError(f"window={window}: give at least 2 masks to compare")
    return Method(
        amount,
        criterion="bn_scale",
        granularity=("channel", {"equal": True}),
        scope="global",
        soft=True,
        penalty=ScaleLasso(strength),
        rule=Watch(every, window, distance),
    )
