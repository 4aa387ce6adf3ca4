"""What happens to the units of a class, operator by operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from secateur.graph.classes import Axis, classes_in, module_of

if TYPE_CHECKING:
    from secateur.graph.graph import FrozenOp, Graph


@dataclass(frozen=True)
class Event:
    """One operator that makes, passes on, joins or takes in units of a class.

    Attributes:
        op: Place of the operator in ``Graph.ops``.
        how: makes, shares (with parameters of its own), joins (several values), takes (sums over
            them) or passes.
        module: The module that ran it, or that owns the parameters it used.
        operator: Its name as a person says it.
        tensors: Parameters and buffers that hold the units here.
        values: Which operators made the values that hold the units here.
    """

    op: int
    how: str
    module: str
    operator: str
    tensors: tuple[str, ...]
    values: tuple[int | None, ...]


class Flow:
    """The operators of a graph with its parameters told apart from its values."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def parameters(self) -> dict[int, tuple[str, ...]]:
        """Operators that only see parameters and buffers (a transpose, say), and which."""
        found: dict[int, tuple[str, ...]] = {}
        for i, op in enumerate(self.graph.ops):
            if op.sources and all(isinstance(s, str) or s in found for s in op.sources):
                names = [n for s in op.sources for n in _names(s, found)]
                found[i] = tuple(dict.fromkeys(names))
        return found

    def names(self, source: str | int | None) -> tuple[str, ...]:
        """The parameters that an input is made of alone; none if it is a value."""
        return _names(source, self.parameters)

    def events(self, cls: str) -> Iterator[Event]:
        """What happens to a class, in order of execution."""
        for i, op in enumerate(self.graph.ops):
            if i in self.parameters:
                continue
            held = [
                source
                for source, axes in zip(op.sources, op.inputs, strict=True)
                if _holds(axes, cls)
            ]
            given = any(_holds(axes, cls) for axes in op.outputs if axes is not None)
            if not held and not given:
                continue
            tensors = tuple(dict.fromkeys(n for s in held for n in self.names(s)))
            values = tuple(s for s in held if not self.names(s) and not isinstance(s, str))
            if not given:
                how = "takes"
            elif len(values) > 1 or (values and tensors and self._foreign(op, tensors)):
                how = "joins"
            elif values and tensors:
                how = "shares"
            else:
                how = "passes" if values else "makes"
            yield Event(i, how, self._module(op, tensors), short_name(op.name), tensors, values)

    def _foreign(self, op: FrozenOp, tensors: tuple[str, ...]) -> bool:
        """True if parameters of another module than the one that runs meet a value."""
        return any(module_of(t) != op.module for t in tensors)

    def _module(self, op: FrozenOp, tensors: tuple[str, ...]) -> str:
        weights = [n for s in op.sources for n in self.names(s)] or list(tensors)
        inside = [module_of(n) for n in weights if module_of(n).startswith(op.module)]
        return inside[0] if inside else op.module

    def origin(self, op: int | None) -> str:
        """Where a value comes from: the module whose parameters or joining operator made it."""
        while op is not None:
            record = self.graph.ops[op]
            sources = [s for s in record.sources if not self.names(s)]
            if any(map(self.names, record.sources)):
                return self._module(record, ()) or short_name(record.name)
            if len(sources) != 1 or not isinstance(sources[0], int):
                break
            op = sources[0]
        if op is None:
            return "an input"
        record = self.graph.ops[op]
        if all(s is None for s in record.sources):
            return "an input"
        where = f" in {record.module}" if record.module else ""
        return f"{short_name(record.name)}{where}"


def _names(source: str | int | None, found: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    if isinstance(source, str):
        return (source,)
    return found.get(source, ()) if source is not None else ()


def _holds(axes: tuple[Axis, ...], cls: str) -> bool:
    return any(cls in classes_in(axis) for axis in axes)


def short_name(operator: str) -> str:
    """``aten.native_batch_norm.default`` as a person says it: batch_norm."""
    namespace, _, rest = operator.partition(".")
    name = re.sub(r"^_+|_+$", "", rest.rpartition(".")[0] or rest)
    if namespace != "aten":
        return f"{namespace}::{name}"
    if name.startswith("scaled_dot_product"):
        return "attention"
    spoken = {"mm": "matmul", "bmm": "matmul", "addmm": "linear", "baddbmm": "matmul"}
    return spoken.get(name, re.sub(r"^native_|_with_indices$|_no_training$|_legit", "", name))
