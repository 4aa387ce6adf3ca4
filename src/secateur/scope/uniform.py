"""Uniform: every class loses the same fraction."""

from collections.abc import Sequence

from secateur.graph import Graph, UnitClass
from secateur.scope.registry import Pools, scope


@scope("uniform")
def uniform(graph: Graph, classes: Sequence[UnitClass]) -> Pools:
    """Every class is its own pool: scores are compared inside a class only."""
    return [[c] for c in classes]
