"""The plan: which units stay, as data that can be printed, stored, composed and applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.files import path_of
from secateur.graph.classes import Axis, axis_kept, axis_mask
from secateur.plan.gaps import Gap
from secateur.plan.selection import Selection, selection

if TYPE_CHECKING:
    from secateur.graph import Graph
    from secateur.plan.undo import Difference
    from secateur.plan.verify import Verification


@dataclass(frozen=True)
class Edit:
    """One thing that the Python side of the model must say differently once sizes have changed.

    With ``call`` None, attribute ``name`` of ``module`` is set to ``value`` (``config.num_heads``
    style paths are allowed). Otherwise argument ``name`` is replaced by ``value`` in those calls of
    ``function`` in that module's forward which give it as ``old`` (if it ``varies`` with the
    inputs, as any multiple of what can be rescaled) to tensors of the shapes ``operands``, where
    None is any size. With ``of`` > 0 the forward makes that many such calls, and only number
    ``call`` of them is meant.
    """

    module: str
    name: str
    value: Any
    old: Any = None
    function: str | None = None
    call: int | None = None
    operands: tuple[tuple[int | None, ...], ...] | None = None
    varies: bool = False
    of: int = 0


@dataclass(frozen=True)
class Plan:
    """What goes from a model.

    Attributes:
        keep: Class name -> bool mask over its units, True stays; for a class chosen anew for every
            unit of another, one row for each. Classes not named stay whole.
        sizes: Number of units of every class.
        shapes: Shape of every parameter and buffer that the plan was made for.
        axes: Frozen axes of every parameter and buffer.
        exact: True if the pruned model equals the masked one on every input.
        made_by: How the plan was made: criterion, scope, amount, seed, versions.
        edits: What the Python side must say differently; None until solved for.
        notes: What the reader should know: classes given back, and why.
        dropped: Whole blocks, or parts of blocks, that go first; everything else in the plan is
            about the model without them.
        graph: The graph it was made from, if at hand; not part of the stored plan.
    """

    keep: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[Axis, ...]]
    exact: bool = True
    made_by: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] | None = None
    notes: tuple[str, ...] = ()
    dropped: tuple[Gap, ...] = ()
    graph: Graph | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, graph: Graph, keep: Mapping[str, Tensor], **made_by: Any) -> Plan:
        """A plan that keeps the given units; classes kept whole are left out.

        Args:
            graph: The graph of the model.
            keep: Class name -> bool mask over its units, or the indices of the units kept.

        Raises:
            PlanError: An unknown or locked class, a mask of the wrong length, or nothing kept.
        """
        masks = {}
        for name, units in keep.items():
            if name not in graph.classes:
                raise PlanError(f"no class named {name!r}; print(graph) lists the classes")
            c = graph.classes[name]
            mask = torch.as_tensor(units).cpu()
            if mask.dtype != torch.bool:
                if mask.numel() and not 0 <= int(mask.min()) <= int(mask.max()) < c.size:
                    raise PlanError(f"{name}: units must be in [0, {c.size})")
                mask = torch.zeros(c.size, dtype=torch.bool).index_fill(0, mask.long(), True)
            rows = graph.classes[c.over].size if c.over and mask.dim() == 2 else None
            if mask.shape not in ((c.size,), (rows, c.size)):
                raise PlanError(f"{name} has {c.size} units, the mask {tuple(mask.shape)}")
            if rows and len(mask.sum(1).unique()) > 1:
                raise PlanError(
                    f"{name}: every unit of {c.over} must keep the same number of units"
                )
            if mask.all():
                continue
            if c.locked:
                raise PlanError(f"{name} cannot be pruned: {c.locked}")
            if not mask.any():
                raise PlanError(f"{name}: at least one of its {c.size} units must stay")
            masks[name] = mask
        return cls(
            keep=masks,
            sizes=graph.sizes,
            shapes=graph.shapes,
            axes=graph.axes,
            exact=all(graph.classes[n].exact for n in masks),
            made_by=made_by,
            graph=graph,
        )

    @cached_property
    def removed(self) -> dict[str, int]:
        """Class name -> number of units removed."""
        return {n: int((~m).sum()) // (len(m) if m.dim() == 2 else 1) for n, m in self.keep.items()}

    def masks(self, tensor: str) -> list[Tensor]:
        """For each axis of a parameter or buffer, which positions stay for some of the others."""
        result = [axis_mask(a, self.keep, self.sizes) for a in self.axes[tensor]]
        for dims, mask in self.selection(tensor):
            if len(dims) == 2:
                result[dims[0]], result[dims[1]] = mask.any(1), mask.any(0)
        return result

    def selection(self, tensor: str) -> Selection:
        """What stays of a parameter or buffer: masks over one axis, or two that depend."""
        return selection(self.axes[tensor], self.keep, self.sizes)

    @cached_property
    def _counts(self) -> dict[Axis, tuple[int, int]]:
        return {}

    def counts(self, axis: Axis) -> tuple[int, int]:
        """Number of positions of a frozen axis before and after."""
        if isinstance(axis, int):
            return axis, axis
        if axis not in self._counts:
            old = axis_kept(axis, {}, self.sizes)
            self._counts[axis] = (old, axis_kept(axis, self.keep, self.sizes))
        return self._counts[axis]

    @cached_property
    def _positions(self) -> dict[Axis, list[int]]:
        return {}

    def kept_before(self, axis: Axis, position: int) -> int:
        """How many of the first ``position`` positions of a frozen axis stay."""
        if axis not in self._positions:
            mask = axis_mask(axis, self.keep, self.sizes)
            self._positions[axis] = [0, *mask.cumsum(0).tolist()]
        counts = self._positions[axis]
        return counts[slice(position).indices(len(counts) - 1)[1]]  # as in ``mask[:position]``

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a parameter or buffer after the plan is applied."""
        return tuple(self.counts(a)[1] for a in self.axes[tensor])

    @cached_property
    def touched(self) -> list[str]:
        """Parameters and buffers that change."""
        return [t for t in self.axes if self.shape(t) != tuple(self.shapes[t])]

    def __str__(self) -> str:
        from secateur.plan.show import table

        return table(self)

    def prepared(self, graph: Graph | None = None) -> Plan:
        """The plan with its edits solved for; what cannot be made physical is given back, noted."""
        if self.edits is not None:
            return self
        graph = graph or self.graph
        if graph is None:
            raise PlanError("the plan has no edits and no graph to solve for them: trace the model")
        from secateur.plan.repair import prepare

        return prepare(graph, self)

    def apply(self, model: nn.Module | None = None, *, inplace: bool = False) -> nn.Module:
        """Remove the planned units: a new, smaller model; the original stays as it was.

        Args:
            model: The model, or another checkpoint of the same architecture; default: the traced
                one.
            inplace: Change the model itself, to save memory; parameters keep their identity.

        Raises:
            PlanError: The plan was made for another architecture.
        """
        from secateur.plan.surgery import apply

        plan = self.prepared()
        target = model if model is not None else (plan.graph.model if plan.graph else None)
        if target is None:
            raise PlanError("pass the model to apply the plan to")
        return apply(plan, target, inplace=inplace)

    def verify(
        self, model: nn.Module | None = None, pruned: nn.Module | None = None, **options: Any
    ) -> Verification:
        """Show that the pruned model equals the masked one, or where it does not."""
        from secateur.plan.verify import verify

        return verify(self, model, pruned, **options)

    def save(self, path: str | Path) -> None:
        """Write the plan alone as JSON, one line a class and tensor; ``Plan.load`` reads it.

        Raises:
            StoreError: The file cannot be written; an older one stays.
        """
        from secateur.plan.encode import write_plan

        write_plan(self, path_of(path))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file, or from a folder that ``save`` wrote.

        Raises:
            StoreError: The file is missing, damaged, changed, or no plan.
        """
        from secateur.plan.encode import read_plan

        return read_plan(path_of(path))

    def diff(self, other: Plan) -> Difference:
        """Which units only this plan removes, and which only the other; ``print`` shows both.

        Raises:
            PlanError: The plans were made for different architectures.
        """
        from secateur.plan.undo import difference

        return difference(self, other)

    def removed_slices(self, model: nn.Module) -> dict[str, Tensor]:
        """The values that applying the plan to ``model`` removes; they make ``restore`` possible.

        Returns:
            Name of each tensor that changes -> its removed values in row-major order, ``(n,)``.
            ``safetensors.torch.save_file`` stores them as they are.
        """
        from secateur.plan.undo import removed_slices

        return removed_slices(self, model)

    def restore(
        self, pruned: nn.Module, slices: Mapping[str, Tensor], onto: nn.Module
    ) -> nn.Module:
        """Undo the plan: the pruned model's values, and what was removed, in the original shapes.

        Args:
            pruned: What the plan made, possibly trained since.
            slices: From ``removed_slices``.
            onto: The original architecture, with any values or on the meta device; not changed.

        Returns:
            A new model of the original architecture.

        Raises:
            PlanError: One of these is not of this plan.

        Example:
            >>> slices = plan.removed_slices(model)
            >>> again = plan.restore(plan.apply(model), slices, onto=model)  # equals model
        """
        from secateur.plan.undo import restore

        return restore(self, pruned, slices, onto)

    def then(self, other: Plan) -> Plan:
        """One plan of this plan's model that does this and then ``other``, a plan of the result.

        Raises:
            PlanError: ``other`` is not of the model that this plan makes, or has no place in it.

        Example:
            >>> small = first.apply(model)
            >>> second = sec.plan(sec.trace(small, x), amount=0.5)
            >>> both = first.then(second)  # both.apply(model) equals second.apply(small)
        """
        from secateur.plan.compose import then

        return then(self, other)

    def apply_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Narrow an optimizer's state (momenta, averages) along with the parameters it trains.

        Args:
            model: What ``apply(inplace=True)`` pruned, so that the optimizer still holds its
                parameters.
            optimizer: The one that trained the dense model; changed in place.

        Example:
            >>> small = plan.apply(model, inplace=True)  # is model itself
            >>> plan.apply_optimizer(model, optimizer)
        """
        from secateur.plan.surgery import apply_to_optimizer

        apply_to_optimizer(self, model, optimizer)

    def with_keep(self, keep: Mapping[str, Tensor], *notes: str) -> Plan:
        """The same plan with other units kept."""
        if self.graph is None:
            raise PlanError("a stored plan cannot be changed without its graph")
        fresh = Plan.of(self.graph, keep, **self.made_by)
        return replace(fresh, notes=(*self.notes, *notes))
