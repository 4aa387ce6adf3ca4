"""Global: the lowest scores go, wherever they are."""

from collections.abc import Sequence

from secateur.graph import Graph, UnitClass
from secateur.scope.registry import Pools, scope


@scope("global")
def everywhere(graph: Graph, classes: Sequence[UnitClass]) -> Pools:
    """One pool: every unit competes with every other, so classes that matter little lose more."""
    return [list(classes)]
