"""Layer: everything in a residual branch; without it a block gives what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from secateur.criteria.registry import Criterion
from secateur.engine.dataflow import dataflow
from secateur.errors import ConfigError
from secateur.granularity.registry import Elements, Units, granularity
from secateur.graph import Graph

SPACE = "layers"  # all layers of a network compete with each other


@dataclass(frozen=True)
class LayerUnits:
    """Residual branches, each as one unit; a masked one is zero in all its parameters.

    Attributes:
        branches: Parameters of each unit.
        outlets: Those of each that its output is last multiplied by, where a factor acts.
        tensors: Their shapes.
        shapes, sizes, counts: See ``Units``; the size is the mean, as branches differ.
    """

    branches: tuple[tuple[str, ...], ...]
    outlets: tuple[frozenset[str], ...]
    tensors: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    counts: Mapping[str, int]

    def reduce(self, elements: Elements) -> dict[str, Tensor]:
        means = []
        for names in self.branches:
            known = [elements[n].float() for n in names if n in elements]
            weights = [t for t in known if t.dim() > 1] or known
            means.append(torch.stack([t.sum() for t in weights]).sum()
                         / sum(t.numel() for t in weights))  # fmt: skip
        return {SPACE: torch.stack(means)}

    def spread(self, units: Mapping[str, Tensor], *, alike: bool = False) -> dict[str, Tensor]:
        given = units[SPACE]
        everywhere = alike or given.dtype == torch.bool
        return {
            n: (value if everywhere or n in last else torch.ones_like(value)).expand(
                self.tensors[n]
            )
            for value, names, last in zip(given, self.branches, self.outlets, strict=True)
            for n in names
        }

    def score(self, criterion: Criterion, parameters: Elements) -> dict[str, Tensor]:
        raise ConfigError(
            f"criterion {criterion.name!r} scores a {criterion.level}, which a layer is not: use a "
            "criterion of elements, as 'magnitude' or 'taylor'"
        )

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None


@granularity("layer")
def layer(parameters: Elements, graph: Graph | None = None) -> Units:
    """The residual branches of a network, which compete by their mean scores.

    An amount is a fraction of the branches. What closes the only way through a network (a layer
    without a shortcut, a shortcut with weights) is no unit and stays.

    Args:
        parameters: Name -> weight.
        graph: Of the model.

    Raises:
        ConfigError: Nothing is added to what it is computed from.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(
        ...     nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        ... ).eval()
        >>> layer(dict(net.named_parameters()), trace(net, torch.randn(2, 3, 3))).counts
        {'layers': 2}
    """
    assert graph is not None
    own = dict(graph.model.named_parameters())
    known = [b for b in _branches(graph) if any(n in parameters for n in b.names)]
    found = tuple(b.names for b in known)
    if not found:
        raise ConfigError(
            "no layer of this model is added to its own input, so that leaving one out would cut "
            "the network: use granularity='channel'"
        )
    tensors = {n: tuple(own[n].shape) for names in found for n in names}
    total = sum(own[n].numel() for names in found for n in names if n in parameters)
    size = total // len(found)
    outlets = tuple(b.outlet for b in known)
    return LayerUnits(
        found, outlets, tensors, {SPACE: (len(found), size)}, {SPACE: size}, {SPACE: len(found)}
    )


def residual_branches(graph: Graph) -> dict[str, tuple[str, ...]]:
    """What is added to something that it is computed from, the innermost where these are nested.

    Returns:
        Module that last touches a branch -> parameters that are used in it and nowhere else.
    """
    return {b.module: b.names for b in _branches(graph)}


@dataclass(frozen=True)
class _Branch:
    module: str
    names: tuple[str, ...]
    outlet: frozenset[str]


def _branches(graph: Graph) -> list[_Branch]:
    flow = dataflow(graph)
    own = {n for n, _ in graph.model.named_parameters()}
    above: list[int] = []  # bit j of number i: operator j is upstream of operator i
    weights: list[set[str]] = []  # of each operator, transposed or reshaped ones too
    for i, op in enumerate(graph.ops):
        made = {(k, s) for k, s in enumerate(op.sources) if isinstance(s, int)}
        above.append(reduce(or_, (above[s] | 1 << s for _, s in made), 0))
        views = (weights[s] for k, s in made if k not in flow.inputs[i])
        weights.append({s for s in op.sources if s in own}.union(*views))

    def added(i: int) -> list[int]:
        sources = [s for s in graph.ops[i].sources if isinstance(s, int)]
        is_sum = (
            graph.ops[i].name.startswith(("aten.add.", "aten.add_.")) and len(set(sources)) == 2
        )
        return sources if is_sum else []

    def within_sum(i: int) -> bool:
        readers = flow.readers.get(i, ())
        return bool(added(i)) and len(readers) == 1 and bool(added(readers[0]))

    def terms(i: int) -> list[int]:
        return [t for s in added(i) for t in (terms(s) if within_sum(s) else [s])]

    branches: dict[int, set[int]] = {}
    for i in range(len(graph.ops)):
        parts = [] if within_sum(i) else terms(i)
        for end in parts:
            skips = [s for s in parts if above[end] >> s & 1]
            if skips:
                start = max(skips)
                branches[end] = {
                    j for j in range(start, end + 1)
                    if (j == end or above[end] >> j & 1) and above[j] >> start & 1
                }  # fmt: skip
    used = {end: set().union(*(weights[j] for j in inside)) for end, inside in branches.items()}

    def outlet(i: int, inside: set[int]) -> set[str]:
        """What the output is last multiplied by; with all that is added to that, as biases."""
        if i not in inside:
            return set()
        own, name = weights[i], graph.ops[i].name
        sums = name.startswith(("aten.add.", "aten.add_.", "aten.sub."))
        if own and not sums:
            return own
        joins = sums or name.startswith(("aten.cat.", "aten.stack."))
        before = [s for k in flow.inputs[i] if isinstance(s := graph.ops[i].sources[k], int)]
        return own.union(*(outlet(s, inside) for s in (before if joins else before[-1:])))

    found = []
    for end, inside in branches.items():
        others = (j for j in range(len(graph.ops)) if flow.inputs[j] and j not in inside)
        elsewhere = set().union(*(weights[j] for j in others))
        nested = any(other in inside for other in branches if other != end and used[other])
        if used[end] and not nested and not used[end] & elsewhere:
            last = max(j for j in inside if weights[j])
            module = graph.ops[last].module
            found.append(_Branch(module, tuple(sorted(used[end])), frozenset(outlet(end, inside))))
    return found
