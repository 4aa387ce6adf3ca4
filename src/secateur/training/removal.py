"""From zeros to smaller tensors: which units of a graph are zero altogether, and their plan."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.graph import Graph, Member, UnitClass
from secateur.plan import Plan


def plan_of_zeros(graph: Graph) -> Plan:
    """The plan that removes every unit whose value no output can depend on.

    A unit can go if everything that makes it is zero, biases and norms included, so that it is
    itself zero, or if everything that reads it is. What could be chosen anew for every unit of
    another class, as the dimensions of heads, goes where it is zero in all of these; of what reads
    it the graph does not know all (queries are read by keys). At least one unit of a class stays.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad(): _ = net[2].weight[:, :3].zero_()
        >>> plan_of_zeros(trace(net, torch.randn(2, 4))).removed
        {'0': 3}
    """
    tensors: dict[str, Tensor] = dict(graph.model.named_parameters(remove_duplicate=False))
    keep = {}
    for name, c in graph.free.items():
        gone = _dead(c, tensors)
        if bool(gone.any()):
            if bool(gone.all()):
                gone[0] = False
            keep[name] = ~gone
    plan = Plan.of(graph, keep, criterion="zeros")
    return plan.prepared() if keep else plan


def _dead(c: UnitClass, tensors: dict[str, Tensor]) -> Tensor:
    makes = [m for m in c.members if m.tensor in tensors and m.produces]
    reads = [m for m in c.members if m.tensor in tensors and not m.produces]
    gone = torch.zeros(c.size, dtype=torch.bool)
    for members in (makes,) if c.over is not None else (makes, reads):
        if members:
            gone |= torch.stack([_zero(m, c.size, tensors[m.tensor]) for m in members]).all(0)
    return gone


def _zero(member: Member, size: int, tensor: Tensor) -> Tensor:
    """Which units have only zeros in this tensor."""
    nonzero = (
        (tensor.detach() != 0)
        .movedim(member.axis, 0)
        .reshape(tensor.shape[member.axis], -1)
        .any(1)
        .cpu()
    )
    inside = member.unit >= 0
    number = torch.zeros(size, dtype=torch.long)
    number.index_add_(0, member.unit[inside], nonzero[inside].long())
    return number == 0
