"""Gates: a factor of one on every unit; its gradient says what the unit is worth."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateur.engine.dataflow import Dataflow, dataflow
from secateur.graph import Graph, UnitClass
from secateur.graph.classes import occurrences

Place = tuple[str, int, Tensor]


class Gates:
    r"""Multiplies the output of each module that makes a class by gates $z = 1$, one a unit.

    $\partial L / \partial z_u = \sum a \, \partial L / \partial a$ over all activations $a$ of unit
    $u$, exact whatever follows. A class made in several places, as a residual stream, shares its
    gates between them; a layer whose output only passes on to another that makes the class, as its
    batch norm, is gated there.
    """

    def __init__(
        self, graph: Graph, classes: Sequence[UnitClass], needs: Collection[str] = ()
    ) -> None:
        self.graph = graph
        self.curved = "gate_curvature" in needs
        device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
        flow = dataflow(graph)
        places = {c.name: gate_places(graph, c, flow) for c in classes}
        self.factors = {
            c.name: torch.ones(c.size, device=device, requires_grad=True)
            for c in classes
            if places[c.name]
        }
        self.places: dict[str, list[tuple[str, int, Tensor]]] = {}
        for name, at in places.items():
            for module, dim, unit in at:
                self.places.setdefault(module, []).append((name, dim, unit.to(device)))
        self.totals = {
            n: [torch.zeros_like(z), torch.zeros_like(z)] for n, z in self.factors.items()
        }
        self.curvatures = {n: torch.zeros_like(z) for n, z in self.factors.items()}
        self.reached: set[str] = set()  # classes whose gates took part: of others nothing is known
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
            first = scaled(first, at, self.factors)
            if first is None:
                return None
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return gate

    def add_batch(self, grads: Sequence[Tensor | None]) -> None:
        """Count the gradients with respect to ``factors`` of one batch's loss."""
        self.batches += 1
        for (total, squares), g in zip(self.totals.values(), grads, strict=True):
            if g is not None:
                total += g.detach()
                squares += g.detach().square()
        if self.curved:
            self._curve([g for g in grads if g is not None and g.requires_grad])
        self.reached |= {n for n, g in zip(self.totals, grads, strict=True) if g is not None}

    def _curve(self, grads: Sequence[Tensor]) -> None:
        """The gradient of the sum of all gates' gradients: the Hessian times ones."""
        if grads:
            total = torch.stack([g.sum() for g in grads]).sum()
            products = torch.autograd.grad(
                total, list(self.factors.values()), retain_graph=True, allow_unused=True
            )
            for curvature, product in zip(self.curvatures.values(), products, strict=True):
                if product is not None:
                    curvature += product

    def result(self) -> dict[str, dict[str, Tensor]]:
        n = max(self.batches, 1)
        return {
            c: {
                "gate": t / n,
                "gate_sq": s / n,
                **({"gate_curvature": self.curvatures[c] / n} if self.curved else {}),
            }
            for c, (t, s) in self.totals.items()
            if c in self.reached
        }


def scaled(
    x: Any, at: Sequence[tuple[str, int, Tensor]], factors: Mapping[str, Tensor]
) -> Tensor | None:
    """A tensor times the factors of its units; None if it is not what the places were found for.

    Args:
        x: What a module gives or is given.
        at: Class, axis from the end, and unit of each position; -1 for positions of no unit.
        factors: By class.

    Example:
        >>> scaled(torch.ones(1, 3), [("a", -1, torch.tensor([0, -1, 0]))], {"a": torch.zeros(1)})
        tensor([[0., 1., 0.]])
    """
    for name, dim, unit in at:
        if not isinstance(x, Tensor) or -dim > x.dim() or x.shape[dim] != len(unit):
            return None
        one = factors[name]
        each = torch.cat([one, one.new_ones(1)])[unit.to(one.device)]  # of no unit: the last
        shape = [1] * x.dim()
        shape[dim] = len(unit)
        x = x * each.view(shape).to(x.dtype)
    return x if isinstance(x, Tensor) else None


def gate_places(graph: Graph, c: UnitClass, flow: Dataflow) -> list[Place]:
    """Where a class is gated: module, axis of its output (from the end), unit of each position."""
    makers = [m for m in c.producers if m in graph.outputs]
    places = []
    for module in makers:
        axes = graph.outputs[module]
        for i, axis in enumerate(axes):
            for name, unit in occurrences(axis, graph.sizes):
                if name == c.name:
                    places.append((module, i - len(axes), unit))
    passed = _passed_on(graph, flow, {module for module, _, _ in places})
    return [place for place in places if place[0] not in passed]


def _passed_on(graph: Graph, flow: Dataflow, modules: set[str]) -> set[str]:
    """Those of the modules whose output goes to another of them and nowhere else.

    A convolution before its batch norm, or before a depthwise convolution: gating both would count
    the unit twice.
    """
    last = {op.module: i for i, op in enumerate(graph.ops) if op.module in modules}
    found = set()
    for module, at in last.items():
        while len(flow.readers.get(at, ())) == 1:
            (at,) = flow.readers[at]
            if len(flow.inputs[at]) > 1:  # it meets something else, as a shortcut
                break
            if graph.ops[at].module in modules - {module}:
                found.add(module)
                break
    return found
