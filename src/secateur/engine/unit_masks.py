"""Masks of units: a factor of one on each unit where layers take it in, as if it were removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.gates import scaled
from secateur.graph import Graph, UnitClass
from secateur.graph.classes import module_of


class UnitMasks:
    r"""Multiplies what layers take in by masks $m = 1$, one a unit, the same in all these layers.

    $\partial L / \partial m_u$ is to first order what removing the unit does. A gate where units
    are made (``Gates``) is another thing where several are multiplied with one another, or an
    activation follows: a gated MLP, the queries and keys of a head.
    """

    def __init__(self, graph: Graph, classes: Sequence[UnitClass]) -> None:
        self.model = graph.model
        self.factors: dict[str, Tensor] = {}
        self.places: dict[str, list[tuple[str, int, Tensor]]] = {}
        for c in classes:
            readers = reading_places(graph, c)
            for module, dim, unit in readers:
                self.places.setdefault(module, []).append((c.name, dim, unit))
            if readers:
                device = graph.model.get_parameter(f"{readers[0][0]}.weight".lstrip(".")).device
                self.factors[c.name] = torch.ones(c.size, device=device, requires_grad=True)
        self.each: dict[str, list[Tensor]] = {}
        self.awake = True

    def __enter__(self) -> UnitMasks:
        self.handles = [
            self.model.get_submodule(module).register_forward_pre_hook(self._hook(at))
            for module, at in self.places.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without masks for a while."""
        self.awake = False
        try:
            yield
        finally:
            self.awake = True

    def _hook(self, at: list[tuple[str, int, Tensor]]) -> Any:
        def mask(_: nn.Module, args: Any) -> Any:
            x = args[0] if args else None
            if not self.awake or not isinstance(x, Tensor):
                return None
            masked = scaled(x, at, self.factors)
            return None if masked is None else (masked, *args[1:])

        return mask

    def add_batch(self, grads: Sequence[Tensor | None]) -> None:
        """Note the gradients with respect to ``factors`` of one batch's loss."""
        for name, g in zip(self.factors, grads, strict=True):
            if g is not None:
                self.each.setdefault(name, []).append(g.detach())

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {name: {"mask_gradients": torch.stack(each)} for name, each in self.each.items()}


def reading_places(graph: Graph, c: UnitClass) -> list[tuple[str, int, Tensor]]:
    """Where layers take a class in: module, axis of its input (from the end), unit of each place.

    Example:
        >>> from secateur.graph import trace
        >>> graph = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        ...               torch.ones(1, 2))
        >>> reading_places(graph, graph.classes["0"])
        [('2', -1, tensor([0, 1, 2]))]
    """
    found = []
    for m in c.members:
        module = graph.model.get_submodule(module_of(m.tensor))
        weight = getattr(module, "weight", None)
        if m.produces or m.over is not None or not m.tensor.endswith("weight"):
            continue
        if not isinstance(weight, nn.Parameter) or isinstance(module, nn.Embedding):
            continue
        if weight.dim() > 1 and getattr(module, "groups", 1) == 1:
            found.append((module_of(m.tensor), 1 - weight.dim(), m.unit))
    return found
