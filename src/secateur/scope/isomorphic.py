"""Isomorphic: classes of the same topology are ranked together (arXiv:2407.04616)."""

from collections.abc import Sequence

from secateur.graph import Graph, Member, UnitClass
from secateur.graph.classes import module_of
from secateur.scope.registry import Pools, scope


@scope("isomorphic")
def isomorphic(graph: Graph, classes: Sequence[UnitClass]) -> Pools:
    """One pool for each topology, since scores of unlike structures differ in scale.

    Two classes have the same topology if they are of the same kind and touch, in the same order,
    the same axes of the same parameters of the same types of modules; sizes do not matter.
    """
    modules = dict(graph.model.named_modules())

    def role(m: Member) -> tuple[str, str, int, bool]:
        owner = type(modules.get(module_of(m.tensor))).__name__
        return owner, m.tensor.rpartition(".")[2], m.axis, m.produces

    pools: dict[object, list[UnitClass]] = {}
    for c in classes:
        pools.setdefault((c.kind, *(role(m) for m in c.members)), []).append(c)
    return list(pools.values())
