"""Which operators read what which others made, weights apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.graph import Graph


@dataclass(frozen=True)
class Dataflow:
    """How data move between the operators of a graph.

    Attributes:
        inputs: For every operator, the positions of the inputs that are data. A transposed or
            reshaped weight is none; a constant counts as data.
        readers: Operator -> those that read its output.
    """

    inputs: Sequence[Sequence[int]]
    readers: Mapping[int, Sequence[int]]


def dataflow(graph: Graph) -> Dataflow:
    """Read the flow of data off the operators' sources."""
    inputs: list[list[int]] = []
    readers: dict[int, list[int]] = {}
    weights: set[int] = set()
    for i, op in enumerate(graph.ops):
        data = [
            k
            for k, source in enumerate(op.sources)
            if not isinstance(source, str) and source not in weights
        ]
        if op.sources and not data:
            weights.add(i)
        for source in {op.sources[k] for k in data}:
            if isinstance(source, int):
                readers.setdefault(source, []).append(i)
        inputs.append(data)
    return Dataflow(inputs, readers)
