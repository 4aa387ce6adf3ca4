"""Gates: a factor of one on every unit; its gradient says what the unit is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateur.graph import Graph, UnitClass
from secateur.graph.classes import occurrences

# Operators that lie between a layer's product and its batch norm without changing a value.
_SILENT = ("view", "reshape", "detach", "alias", "empty", "contiguous", "clone", "_to_copy")
Place = tuple[str, int, Tensor]


class Gates:
    r"""Multiplies the output of each module that makes a class by gates $z = 1$, one a unit.

    $\partial L / \partial z_u = \sum a \, \partial L / \partial a$ over all activations $a$ of unit
    $u$, exact whatever follows. A class made in several places, as a residual stream, shares its
    gates between them. A layer that a batch norm follows at once is gated after the norm.
    """

    def __init__(self, graph: Graph, classes: Sequence[UnitClass]) -> None:
        self.graph = graph
        device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
        places = {c.name: gate_places(graph, c) for c in classes}
        self.gates = {
            c.name: torch.ones(c.size, device=device, requires_grad=True)
            for c in classes
            if places[c.name]
        }
        self.places: dict[str, list[tuple[str, int, Tensor]]] = {}
        for name, at in places.items():
            for module, dim, unit in at:
                self.places.setdefault(module, []).append((name, dim, unit.to(device)))
        self.totals = {n: [torch.zeros_like(z), torch.zeros_like(z)] for n, z in self.gates.items()}
        self.batches = 0
        self.awake = True

    def __enter__(self) -> Gates:
        modules = dict(self.graph.model.named_modules())
        self.handles = [
            modules[module].register_forward_hook(self._hook(at))
            for module, at in self.places.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without gates for a while."""
        self.awake = False
        try:
            yield
        finally:
            self.awake = True

    def _hook(self, at: list[tuple[str, int, Tensor]]) -> Any:
        def gate(_: Any, __: Any, output: Any) -> Any:
            if not self.awake:
                return None
            first = output[0] if isinstance(output, tuple) else output
            for name, dim, unit in at:
                if not isinstance(first, Tensor) or first.shape[dim] != len(unit):
                    return None
                # Positions of no unit have index -1: the one that is appended.
                z = torch.cat([self.gates[name], self.gates[name].new_ones(1)])[unit]
                shape = [1] * first.dim()
                shape[dim] = len(unit)
                first = first * z.view(shape).to(first.dtype)
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return gate

    def add_batch(self, grads: Sequence[Tensor | None]) -> None:
        """Count the gradients with respect to ``gates`` of one batch's loss."""
        self.batches += 1
        for (total, squares), g in zip(self.totals.values(), grads, strict=True):
            if g is not None:
                total += g.detach()
                squares += g.detach().square()

    def result(self) -> dict[str, dict[str, Tensor]]:
        n = max(self.batches, 1)
        return {c: {"gate": t / n, "gate_sq": s / n} for c, (t, s) in self.totals.items()}


def gate_places(graph: Graph, c: UnitClass) -> list[Place]:
    """Where a class is gated: module, axis of its output (from the end), unit of each position."""
    skipped = _before_batch_norm(graph) & set(c.producers)
    places = []
    for module in c.producers:
        if module in skipped or module not in graph.outputs:
            continue
        axes = graph.outputs[module]
        for i, axis in enumerate(axes):
            for name, unit in occurrences(axis, graph.sizes):
                if name == c.name:
                    places.append((module, i - len(axes), unit))
    return places


def _before_batch_norm(graph: Graph) -> set[str]:
    """Modules whose product goes straight into a batch norm."""
    found: set[str] = set()
    last = ""
    for op in graph.ops:
        kind = op.name.split(".")[1] if "." in op.name else op.name
        if op.work:
            last = op.module
        elif "batch_norm" in kind and last:
            found.add(last)
            last = ""
        elif kind not in _SILENT:
            last = ""
    return found
