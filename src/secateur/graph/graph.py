"""The graph: a traced model as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from secateur.graph import classes as frozen
from secateur.graph.aside import idle_modules
from secateur.graph.classes import Axis, UnitClass
from secateur.graph.forward import skeleton
from secateur.graph.kept import Kept, forget


@dataclass(frozen=True)
class FrozenOp:
    """One operator as it ran: its name, module, and the frozen axes of what it read and made.

    ``sources`` says where each input came from: a parameter or buffer (its name), an earlier
    operator (its place in ``Graph.ops``), or neither (None: a model input or a constant).
    """

    name: str
    module: str
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...] | None, ...]
    work: tuple[Axis, ...]
    statistical: bool
    sources: tuple[str | int | None, ...] = ()


@dataclass(frozen=True)
class FrozenCall:
    """One torch function as the forward called it (see ``capture.Call``)."""

    function: str
    scopes: tuple[tuple[str, int], ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]
    decisions: tuple[Any, ...] = ()

    @property
    def module(self) -> str:
        return self.scopes[-1][0] if self.scopes else ""


@dataclass(frozen=True)
class Graph:
    """A model seen as unit classes: what can be removed and what goes with it.

    Attributes:
        model: The traced model, never modified.
        example_inputs: What it was traced with.
        classes: Every class by name, removable or locked.
        shapes: Shape of every parameter and buffer (shared ones once).
        axes: Frozen axes of every parameter and buffer.
        ops: The operators in the order in which they ran.
        calls: The torch functions that the forward called.
        outputs: Frozen axes of the (first) output of every module.
        unknown: Operators without a rule, and how often they ran; their axes are locked.
        aside: Modules that this forward did not run, but another did, by how that was done: in
            training, or given what a twin was given. They are pruned along.
        on_data: True if the model had to be run on real tensors, since its control flow reads data.
        kept: Modules that the forward keeps tensors in, see ``graph.kept``.
    """

    model: nn.Module
    example_inputs: Any
    classes: Mapping[str, UnitClass]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[Axis, ...]]
    ops: tuple[FrozenOp, ...]
    calls: tuple[FrozenCall, ...]
    outputs: Mapping[str, tuple[Axis, ...]]
    unknown: Mapping[str, int] = field(default_factory=dict)
    on_data: bool = False
    aside: Mapping[str, str] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)

    def skeleton(self) -> nn.Module:
        """The model to run: a copy that shares all tensors, as if it had not run since."""
        return forget(skeleton(self.model), self.kept)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of every class."""
        return {name: c.size for name, c in self.classes.items()}

    @cached_property
    def free(self) -> dict[str, UnitClass]:
        """The classes from which units can be removed."""
        return {n: c for n, c in self.classes.items() if c.locked is None}

    @cached_property
    def idle(self) -> tuple[str, ...]:
        """Modules with parameters none of which this forward read, but for those of ``aside``.

        What feeds them elsewhere is not known, so another path through them may no longer fit.
        """
        read = {source for op in self.ops for source in op.sources}
        idle = idle_modules(self.model, read)
        return tuple(n for n in idle if n not in self.aside)

    @cached_property
    def prunable_share(self) -> float:
        """Share of all parameter elements that lie along at least one free class."""
        total, touched = 0, 0.0
        parameters = {n for n, _ in self.model.named_parameters()}
        for name, axes in self.axes.items():
            if name in parameters:
                n = torch.Size(self.shapes[name]).numel()
                total += n
                held = 1.0
                for axis, size in zip(axes, self.shapes[name], strict=True):
                    covered = torch.zeros(size, dtype=torch.bool)
                    for _, unit in frozen.occurrences(axis, self.sizes):
                        covered |= unit >= 0
                    held *= 1 - covered.float().mean().item() if size else 1.0
                touched += n * (1 - held)
        return touched / total if total else 0.0

    def __str__(self) -> str:
        from secateur.graph.show import table

        return table(self)

    def explain(self, name: str) -> str:
        """Which units go together with those of a layer, and through which operators.

        Args:
            name: Qualified name of a module, a parameter or a class.

        Raises:
            ConfigError: Nothing has that name; the message offers the nearest ones.
        """
        from secateur.graph.explain import explain

        return explain(self, name)

    def draw(self, path: str) -> None:
        """Write a picture of the graph to an ``.svg`` or ``.html`` file.

        Raises:
            ConfigError: Another ending, or a folder that does not exist.
        """
        from secateur.graph.draw import draw

        draw(self, path)
