"""The seams of training: what a method's own file may add to what the engine does by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine import ranks

Tensors = dict[str, Tensor]
Auxiliaries = dict[str, Tensors]  # space -> name -> trained tensor


@dataclass
class Moment:
    """Where a training run is, and what a seam may remember.

    Attributes:
        step: Optimizer steps that are over.
        steps: Steps of the whole run.
        amount: Fraction that should be gone now.
        target: Fraction that should be gone at the end.
        generator: Of everything random; its state is stored, and the same on every rank.
        state: Tensors that a seam keeps between steps; stored and restored by name.
        optimizer: The user's own, for learning rates.
        units: What is removed as one (see ``granularity.registry.Units``).
        validating: True while a validation batch runs (bilevel training).
        parameters: What is pruned, by name.
        masks: What stays of it now.
        model: The model.
    """

    step: int
    steps: int
    amount: float
    target: float
    generator: torch.Generator
    optimizer: Any
    model: nn.Module
    units: Any = None
    validating: bool = False
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    state: Tensors = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """Fraction of the run that is over."""
        return min(self.step / max(self.steps, 1), 1.0)

    @torch.no_grad()
    def clear(self, name: str, where: Tensor) -> None:
        """Zero a parameter and its slots in the optimizer at the places that are True."""
        p = self.parameters[name]
        for tensor in (p, *self.optimizer.state.get(p, {}).values()):
            if isinstance(tensor, Tensor) and tensor.shape == p.shape:
                tensor.masked_fill_(where, 0)

    def rate(self, parameter: Tensor | None = None) -> float:
        """The learning rate of the user's group that holds a parameter, else of the first."""
        groups = self.optimizer.param_groups
        held = (g for g in groups if any(p is parameter for p in g["params"]))
        return float(next(held, groups[0])["lr"])

    def keep(self, units: Mapping[str, Tensor]) -> None:
        """Mask all but these units (space -> bool), with whatever else goes with them."""
        masks = self.units.spread(units)
        self.masks = {
            n: ranks.like(masks[n].contiguous(), p)
            if n in masks
            else torch.ones_like(p, dtype=torch.bool)
            for n, p in self.parameters.items()
        }

    def part(self, name: str) -> Tensors:
        """What ``state`` holds of each parameter under ``name.<parameter>``; often nothing."""
        found = {n: self.state.get(f"{name}.{n}") for n in self.parameters}
        return {n: t for n, t in found.items() if t is not None}

    def weights(self) -> list[nn.Parameter]:
        """What is pruned, without the biases and norms that go with a channel."""
        return [p for p in self.parameters.values() if p.dim() > 1]


class Penalty:
    """Pushes weights towards zero. Both moments do nothing unless a method's file says so.

    Attributes:
        scheduled: True if it follows the progress of the run, of penalties, gates and rules alike:
            then the number of steps must be known.
    """

    scheduled: bool = False

    def gradients(self, moment: Moment) -> None:
        """Before the step: add to ``.grad`` of the parameters."""

    def shrink(self, moment: Moment) -> None:
        """After the step: move the parameters themselves, as a proximal operator does."""


class Gate:
    """A map from a weight and auxiliary parameters to the weight that the forward sees.

    The forward of each layer sees ``forward(weight, ...)`` in place of its weight; its gradient
    reaches the weight and the auxiliaries, which have an optimizer of their own. Names, shapes and
    the state dict of the model stay as they are.

    Attributes:
        lr: Learning rate of the auxiliaries; None follows that of the user's optimizer.
        optimizer: "sgd" or "adam".
        trains_weights: False if weights stay at their initial values (edge-popup).
        shared: True if the auxiliaries belong to units (spaces of the granularity) and the factor
            of a unit is spread over all tensors that make it.
        random: True if it draws from ``moment.generator`` in a forward: then one step has one draw.
    """

    lr: float | None = 0.01
    optimizer: str = "sgd"
    trains_weights: bool = True
    shared: bool = False
    random: bool = False
    scheduled: bool = False

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        """Initial values for one parameter; if shared, for a space, with (units,) ones."""
        return {}

    def forward(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        """The weight that the forward sees, differentiable; by default the weight by its factor."""
        return weight * self.factor(weight, aux, mask, moment).to(weight.dtype)

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        """What each element (or, if shared, each unit) is multiplied by."""
        return mask.to(weight.dtype)

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor | None:
        """Which elements (or units) stay, by score; None where ``keeps`` counts by itself.

        A gate may have both: scores where the method has an amount, ``keeps`` where it has none.
        """
        return None

    def keeps(self, weight: Tensor, aux: Tensors, moment: Moment) -> Tensor:
        """Which elements (or units) stay, where their number follows from training."""
        return torch.ones_like(weight, dtype=torch.bool)

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        """A term of the loss in the auxiliaries and ``moment.parameters``, each step."""
        return None

    def observe(self, aux: Auxiliaries, moment: Moment) -> None:
        """Before the step, with the gradients of the auxiliaries in their ``.grad``."""

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        """After the step: clamp, anneal, reset."""

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        """The weight at the end; by default what the forward sees, zero where masked."""
        return self.forward(weight, aux, mask, moment) * mask.to(weight.dtype)


class Rule:
    """Free moments of a run, for methods that no other field describes (DeepR, DSR, HESSO)."""

    scheduled: bool = False

    def start(self, moment: Moment) -> None:
        """Once, when attached; masks have been chosen."""

    def before_step(self, moment: Moment) -> None:
        """With dense gradients, before they are masked; may change ``moment.masks``."""

    def after_step(self, moment: Moment) -> None:
        """After the step; may change ``moment.masks`` and weights."""

    def finish(self, moment: Moment) -> None:
        """Once, before the final masks are applied."""


Loss = Callable[..., Tensor]
Scores = Mapping[str, Tensor]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of ``soft``.

    Example:
        >>> s = torch.tensor([0.2], requires_grad=True)
        >>> straight_through((s > 0).float(), s)
        tensor([1.], grad_fn=<AddBackward0>)
    """
    return hard.to(soft.dtype) + (soft - soft.detach())
