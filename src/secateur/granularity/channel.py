"""Channel: a unit of the graph, all slices of all tensors that are coupled through it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from secateur.criteria.registry import Criterion
from secateur.engine.dataflow import dataflow
from secateur.engine.gates import gate_places
from secateur.errors import ConfigError
from secateur.granularity.registry import Elements, Units, granularity
from secateur.granularity.sums import unit_sum
from secateur.granularity.units import score
from secateur.graph import Graph, Member, UnitClass
from secateur.graph.classes import module_of, occurrences


@dataclass(frozen=True)
class ChannelUnits:
    """Units of graph classes; a masked unit is zero in everything that makes it.

    What makes a unit are the rows of its layers with their biases, and its norms' scales and
    shifts: with these at zero its activation is zero, so the unit can be removed.

    Attributes:
        graph: Where the classes are from.
        classes: By space.
        members: Space -> what makes its units.
        shapes, sizes, counts: See ``Units``.
    """

    graph: Graph
    classes: Mapping[str, UnitClass]
    members: Mapping[str, tuple[Member, ...]]
    tensors: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    counts: Mapping[str, int]

    def reduce(self, elements: Elements) -> dict[str, Tensor]:
        found = {}
        for space, members in self.members.items():
            total, number = torch.zeros(self.counts[space]), torch.zeros(self.counts[space])
            for m in members:
                if m.tensor not in elements or len(self.tensors[m.tensor]) < 2:
                    continue
                values = elements[m.tensor].movedim(m.axis, 0).flatten(1).float()
                inside = m.unit >= 0
                total, number = total.to(values.device), number.to(values.device)
                unit = m.unit[inside].to(values.device)
                inside = inside.to(values.device)
                total = total.index_add(0, unit, values.sum(1)[inside])
                number = number.index_add(0, unit, torch.full_like(unit, values.shape[1]).float())
            if bool(number.any()):  # a class of which nothing is known is left alone
                found[space] = total / number.clamp(min=1)
        return found

    def spread(self, units: Mapping[str, Tensor], *, alike: bool = False) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for space, given in units.items():
            # A mask holds wherever a unit is made, but a factor would act once in every place.
            once = () if alike or given.dtype == torch.bool else self.passed[space]
            for m in self.members[space]:
                values = torch.ones_like(given) if module_of(m.tensor) in once else given
                padded = torch.cat([values, torch.ones_like(values[:1])])  # -1: of no unit
                shape = self.tensors[m.tensor]
                view = [1] * len(shape)
                view[m.axis] = -1
                along = padded[m.unit.to(values.device)].view(view).expand(shape)
                if m.tensor in found:
                    was = found[m.tensor]
                    along = was & along if along.dtype == torch.bool else was * along
                found[m.tensor] = along
        return found

    @cached_property
    def outlets(self) -> Mapping[str, tuple[Member, ...]]:
        """Space -> what last makes its units: the norm behind a layer, or the layer without one."""
        return {
            space: tuple(m for m in members if module_of(m.tensor) in self._last[space])
            for space, members in self.members.items()
        }

    @cached_property
    def passed(self) -> Mapping[str, frozenset[str]]:
        """Space -> modules that give their units to another that makes them, as to a norm."""
        sizes, outputs = self.graph.sizes, self.graph.outputs
        found = {}
        for space, members in self.members.items():
            makers = {
                module
                for module in {module_of(m.tensor) for m in members} & outputs.keys()
                if any(n == space for axis in outputs[module] for n, _ in occurrences(axis, sizes))
            }
            found[space] = frozenset(makers - self._last[space])
        return found

    @cached_property
    def _last(self) -> Mapping[str, set[str]]:
        flow = dataflow(self.graph)
        return {
            space: {module for module, _, _ in gate_places(self.graph, c, flow)}
            for space, c in self.classes.items()
        }

    def gathered(self, elements: Elements) -> dict[str, Tensor]:
        """Sums of elements, biases too, over the outlets of each unit: shape (count,)."""
        found = {}
        for space, members in self.outlets.items():
            parts = [
                unit_sum(elements[m.tensor].movedim(m.axis, 0).flatten(1).sum(1)
                         if elements[m.tensor].dim() > 1 else elements[m.tensor],
                         m.unit, self.counts[space])
                for m in members
            ]  # fmt: skip
            if parts:
                found[space] = torch.stack(parts).sum(0)
        return found

    def score(self, criterion: Criterion, parameters: Elements) -> dict[str, Tensor]:
        return score(self.graph, self.classes.values(), criterion)

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None


@granularity("channel")
def channel(
    parameters: Elements,
    graph: Graph | None = None,
    *,
    equal: bool = False,
    kinds: Collection[str] | None = None,
) -> Units:
    """The free unit classes of a graph that make at least one of the parameters.

    Args:
        parameters: Name -> weight.
        graph: Of the model.
        equal: Each unit counts as one where all compete, however many weights it has.
        kinds: Only classes of these kinds, as ("head", "channel"). What could be chosen anew for
            every unit of another class, as ``head_dim``, is here only if named, and then a unit is
            the same place in all of these.

    Raises:
        ConfigError: No class of the graph makes any of the parameters.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> channel(dict(net.named_parameters()), trace(net, torch.randn(2, 4))).counts
        {'0': 8}
    """
    assert graph is not None
    own = dict(graph.model.named_parameters())
    members = {}
    for name, c in graph.free.items():
        if kinds is not None and c.kind not in kinds:
            continue
        makes = tuple(
            m
            for m in c.members
            if m.produces and m.tensor in own and (m.over is None or kinds is not None)
        )
        if any(m.tensor in parameters for m in makes):
            members[name] = makes
    if not members:
        raise ConfigError("no class of the graph makes any of these parameters: look at the trace")
    classes = {name: graph.free[name] for name in members}
    tensors = {m.tensor: tuple(own[m.tensor].shape) for ms in members.values() for m in ms}
    first = {
        name: next(tensors[m.tensor] for m in ms if m.tensor in parameters)
        for name, ms in members.items()
    }
    counts = {name: c.size for name, c in classes.items()}
    sizes = {
        name: 1
        if equal
        else max(
            sum(own[m.tensor].numel() for m in ms if m.tensor in parameters) // counts[name], 1
        )
        for name, ms in members.items()
    }
    return ChannelUnits(graph, classes, members, tensors, first, sizes, counts)
