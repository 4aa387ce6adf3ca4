"""What methods on widths share: how large units are, what widths cost, and meeting a budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Moment, Tensors
from secateur.errors import ConfigError
from secateur.granularity.sums import unit_sum
from secateur.granularity.units import is_norm
from secateur.plan.widths import Widths, macs_share


def sizes(moment: Moment) -> dict[str, Tensor]:
    r"""How large each unit is: the largest $|\gamma|$ of its norms, else the norm of its weights.

    A unit that several norms scale, as in a residual stream, is as large as its largest.

    Returns:
        Space -> ``(units,)``, differentiable in the parameters.
    """
    modules = moment.model.named_modules()
    scales = {f"{name}.weight" for name, module in modules if is_norm(module)}
    found = {}
    for space, members in moment.units.members.items():
        count = moment.units.counts[space]
        own = [(m, moment.parameters[m.tensor].float()) for m in members]
        by_norm = [unit_sum(p.abs(), m.unit, count) for m, p in own if m.tensor in scales]
        if by_norm:
            found[space] = torch.stack(by_norm).amax(0)
        else:
            squares = [
                unit_sum(p.square().movedim(m.axis, 0).flatten(1).sum(1), m.unit, count)
                for m, p in own
                if p.dim() > 1
            ]
            found[space] = (torch.stack(squares).sum(0) + 1e-24).sqrt()
    return found


def largest_shift(moment: Moment, widths: Callable[[float], Widths], share: float) -> float:
    """The largest shift at which widths, growing with it, cost no more than a share of the MACs.

    Raises:
        ConfigError: Even the narrowest network costs more.
    """
    low, high = -60.0, 60.0
    if float(macs_share(moment.units.graph, widths(low))) > share:
        raise ConfigError(
            f"macs={share}: with every layer at its least width the network still needs "
            f"{float(macs_share(moment.units.graph, widths(low))):.1%} of its MACs; ask for more"
        )
    for _ in range(40):
        middle = (low + high) / 2
        fits = float(macs_share(moment.units.graph, widths(middle))) <= share
        low, high = (middle, high) if fits else (low, middle)
    return low


def fit(
    moment: Moment,
    aux: Auxiliaries,
    key: str,
    width: Callable[[Tensors, float], Tensor],
    share: float,
) -> None:
    """Once, at the end of a search: shift all auxiliaries of a name so that the budget is met.

    Args:
        moment: Of the run, whose state remembers that it is done.
        aux: By space.
        key: Which of them.
        width: From the auxiliaries of a space and a shift to its number of units.
        share: Budget, of the dense network's MACs.

    Raises:
        ConfigError: It is out of reach.
    """
    if "fitted" in moment.state:
        return
    shift = largest_shift(moment, lambda by: {s: width(a, by) for s, a in aux.items()}, share)
    for a in aux.values():
        a[key].add_(shift)
    moment.state["fitted"] = torch.tensor(True)


def budget_loss(cost: Tensor, target: float) -> Tensor:
    r"""0 between $0.95\,T$ and T; above $\log\frac{E - 0.95 T}{0.05 T}$, below
    $\log\frac{T - E}{0.05 T}$.

    The slopes are those of the authors' $\log |E - 0.95\,T|$ and $\log |E - T|$; the constants
    make it continuous, and it is nowhere infinite.

    Example:
        >>> [round(float(budget_loss(torch.tensor(e), 0.5)), 3) for e in (1.0, 0.5, 0.48, 0.4)]
        [3.045, 0.0, 0.0, 1.386]
    """
    width = 0.05 * target
    over = (cost - 0.95 * target).clamp(min=width) / width
    under = (target - cost).clamp(min=width) / width
    return over.log() + under.log()
