"""FreeTickets: several sparse networks from one run of dynamic sparse training, and their vote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.seams import Moment, Rule, Tensors
from secateur.errors import ConfigError
from secateur.methods.during.rigl import cosine
from secateur.methods.registry import Method, method


def phases(tickets: int, explore: float) -> list[float]:
    """Where the phases of a run end: exploration and one refinement a ticket, as progress.

    Example:
        >>> phases(3, 0.4)
        [0.4, 0.6, 0.8, 1.0]
    """
    return [explore + (1 - explore) * k / tickets for k in range(tickets + 1)]


def restarted(progress: float, *, tickets: int, explore: float, share: float, jump: float) -> float:
    """The share exchanged: a cosine down to nothing in each phase, from ``jump`` after the first.

    Example:
        >>> fall = partial(restarted, tickets=1, explore=0.5, share=0.3, jump=0.8)
        >>> [round(fall(t), 3) for t in (0, 0.25, 0.5, 0.75, 1)]
        [0.3, 0.15, 0.8, 0.4, 0.0]
    """
    ends = phases(tickets, explore)
    phase = sum(progress >= e - 1e-9 for e in ends)
    if phase == len(ends):
        return 0.0
    begin = ends[phase - 1] if phase else 0.0
    inside = max(progress - begin, 0.0) / (ends[phase] - begin)
    return cosine(inside, share=jump if phase else share, stop=1.0)


@dataclass(frozen=True)
class Collected(Rule):
    """Keeps the whole state of the model at the end of each refinement, before an exchange."""

    tickets: int
    explore: float
    every: int
    scheduled = True

    def before_step(self, moment: Moment) -> None:
        self._keep(moment, moment.step + 1, exchanged=True)

    def after_step(self, moment: Moment) -> None:
        self._keep(moment, moment.step, exchanged=False)

    def _keep(self, moment: Moment, step: int, exchanged: bool) -> None:
        ends = [round(e * moment.steps) for e in phases(self.tickets, self.explore)[1:]]
        if exchanged != (step % self.every == 0 and step < moment.steps) or step not in ends:
            return
        for name, t in moment.model.state_dict().items():
            copy = t.detach() * moment.masks.get(name, torch.ones_like(t))
            moment.state[f"ticket.{ends.index(step)}.{name}"] = copy


def collected(moment: Moment) -> list[Tensors]:
    """State dicts of the tickets that a run has collected so far, for ``load_state_dict``.

    Raises:
        ConfigError: There are none, as where the run was not of this method.
    """
    found: dict[str, Tensors] = {}
    for key, tensor in moment.state.items():
        if key.startswith("ticket."):
            _, number, name = key.split(".", 2)
            found.setdefault(number, {})[name] = tensor
    if not found:
        raise ConfigError("no tickets yet: attach method 'free_tickets' and train to a ticket")
    return list(found.values())


@torch.no_grad()
def vote(models: Iterable[nn.Module], *inputs: Any) -> Tensor:
    """The mean of the members' class probabilities, as they are: set ``eval()`` before.

    The members may be tickets of one run (EDST) or of runs of their own with other seeds (DST).

    Example:
        >>> vote([nn.Identity(), nn.Identity()], torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    return torch.stack([model(*inputs).softmax(-1) for model in models]).mean(0)


@method(stage="during", paper="arXiv:2106.14568")
def free_tickets(
    amount: float = 0.9,
    *,
    tickets: int = 3,
    explore: float = 0.4,
    every: int = 100,
    share: float = 0.5,
    jump: float = 0.8,
    scope: Any = "erk",
    granularity: Any = "element",
) -> Method:
    """Efficient dynamic sparse training (EDST): explore, then refine again and again.

    As RigL, but with a share that starts anew, at ``jump``, with every refinement, so that the
    network leaves the place where its last ticket was taken; at the end of each its state is
    kept. ``collected(handle.moment)`` gives them, ``vote`` their ensemble; the model itself ends
    as the last. The learning rate is the loop's own: let it start anew with the phases, too. The
    step of an exchange updates no weight. (The fall within a phase, along a cosine, is ours.)

    Args:
        amount: Fraction that is absent, from the start.
        tickets: How many.
        explore: Part of training before the first refinement.
        every: Steps between two exchanges.
        share: Fraction exchanged at first.
        jump: Fraction exchanged as a refinement starts.
        scope: Allocation of the first, random mask.
        granularity: What is exchanged as one; not channels, which get no gradient while masked.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> free_tickets(0.9, tickets=7).rule.tickets
        7
    """
    if tickets < 1 or not 0 < explore < 1 or not (0 <= share <= 1 and 0 <= jump <= 1):
        said = f"tickets={tickets}, explore={explore}, share={share}, jump={jump}"
        wanted = "at least one ticket, explore in (0, 1), shares in [0, 1]"
        raise ConfigError(f"free_tickets: {said}: {wanted}")
    fall = partial(restarted, tickets=tickets, explore=explore, share=share, jump=jump)
    return Method(
        amount,
        first="random",
        grow="gradient",
        scope=scope,
        granularity=granularity,
        every=every,
        drop=fall,
        rule=Collected(tickets, explore, every),
    )
