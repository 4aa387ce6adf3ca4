"""What networks of other widths cost, whole or expected, and the widest that fits a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.graph import Graph
from secateur.plan.budget import cost, dense_cost

Widths = Mapping[str, Any]


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


def widened(graph: Graph, kept: Mapping[str, int], macs: float = 1.0) -> dict[str, int]:
    r"""The expansion: all widths times one $\omega$, the largest that costs no more than ``macs``.

    Args:
        graph: Of the dense network.
        kept: Class -> units left after shrinking; other classes are whole and stay so.
        macs: Budget, as a fraction of the dense network's.

    Returns:
        Class -> units of a network to build and train anew, at least 1 each.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> widened(trace(net, torch.zeros(1, 4)), {"0": 8, "2": 2})
        {'0': 13, '2': 3}
    """

    def at(factor: float) -> dict[str, int]:
        return {s: max(int(factor * k + 1e-9), 1) for s, k in kept.items()}

    low, high = 0.0, 1.0
    while float(macs_share(graph, at(high))) <= macs and high < 2**20:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        fits = float(macs_share(graph, at(middle))) <= macs
        low, high = (middle, high) if fits else (low, middle)
    return at(low)
