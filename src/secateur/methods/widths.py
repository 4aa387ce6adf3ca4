"""What methods on widths share: how large units are, what widths cost, and meeting a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.engine.seams import Moment
from secateur.errors import ConfigError
from secateur.granularity.units import is_norm, unit_sum
from secateur.graph import Graph
from secateur.plan.budget import cost, dense_cost

Widths = Mapping[str, Any]


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


def macs_share(graph: Graph, widths: Widths) -> Tensor:
    """The multiply-accumulates of a network of these widths, as a fraction of the dense one's.

    Widths may be expectations; the result is differentiable in them. Equal to what is measured
    after removal where widths are whole.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> macs_share(trace(net, torch.zeros(1, 4)), {"0": torch.tensor(2.0)})
        tensor(0.2500)
    """
    form = cost(graph, "macs")
    full: dict[str, Any] = {n: torch.ones(k, dtype=torch.bool) for n, k in graph.sizes.items()}
    return torch.as_tensor(form.total({**graph.sizes, **widths}, lambda: full)) / dense_cost(
        form, graph
    )


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
