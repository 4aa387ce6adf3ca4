"""ITOP: explore many places in time, by exchanging weights seldom and for long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.methods.during.rigl import cosine
from secateur.methods.registry import Method, method
from secateur.names import unknown


@dataclass(frozen=True)
class Explored(Rule):
    """Remembers which weights were active at any time, as masks named ``explored.<parameter>``."""

    def start(self, moment: Moment) -> None:
        moment.state.update({f"explored.{n}": m.clone() for n, m in moment.masks.items()})

    def after_step(self, moment: Moment) -> None:
        for name, mask in moment.masks.items():
            moment.state[f"explored.{name}"].logical_or_(mask)


def exploration(masks: Iterable[Tensor]) -> float:
    r"""In-time over-parametrisation $R_s$: the fraction of weights that was ever active.

    Args:
        masks: Of the weights that were, over all parameters.

    Raises:
        ConfigError: There are no masks, as where the run was not ITOP's.

    Example:
        >>> import torch
        >>> exploration([torch.tensor([True, False]), torch.tensor([True, True])])
        0.75
    """
    known = list(masks)
    if not known:
        raise ConfigError("no masks of explored weights: attach method 'itop', which keeps them")
    return sum(int(m.sum()) for m in known) / sum(m.numel() for m in known)


def explored(moment: Moment) -> list[Tensor]:
    """The masks of what a run has explored so far, for ``exploration``."""
    return [m for n, m in moment.state.items() if n.startswith("explored.")]


@method(stage="during", paper="arXiv:2102.02887")
def itop(
    amount: float = 0.9,
    *,
    grow: str = "gradient",
    every: int = 1500,
    share: float = 0.5,
    least: float = 0.005,
    scope: Any = "erk",
    granularity: Any = "element",
) -> Method:
    """RigL or SET with long intervals and a share that falls over the whole of training.

    What counts is how many weights have been active at some time and were trained long enough to
    be judged: ``exploration(explored(handle.moment))`` tells how many.

    Args:
        amount: Fraction that is absent, from the start.
        grow: "gradient" (RigL-ITOP) or "random" (SET-ITOP).
        every: Steps between two exchanges; the paper's are 1500 for SET and 4000 for RigL on the
            largest networks.
        share, least: Fraction exchanged at first and at last, along a cosine.
        scope: Allocation of the first, random mask.
        granularity: What is exchanged as one.

    Raises:
        ConfigError: Another way to grow.

    Example:
        >>> itop(0.9, grow="random").grow
        'random'
    """
    if grow not in ("gradient", "random"):
        raise ConfigError(unknown("way to grow", grow, ("gradient", "random")))
    return Method(
        amount,
        first="random",
        grow=grow,
        scope=scope,
        granularity=granularity,
        every=every,
        drop=partial(cosine, share=share, stop=1.0, least=least),
        rule=Explored(),
    )
