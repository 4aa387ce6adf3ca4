"""One network, one optimizer, half of the weights masked at random, by each tool as it is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

import secateur as sec
from secateur.engine.masks import weights_of

AMOUNT = 0.9


@dataclass
class Run:
    """A training run that goes on step by step.

    Attributes:
        model, optimizer: As the tool left them.
        end: Makes what the tool did permanent.
        handle: Of ours.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    end: Callable[[], Any] = lambda: None
    handle: Any = None
    inputs: Any = None
    targets: Any = None
    seen: list[float] = field(default_factory=list)

    def step(self) -> None:
        """One step of training on the run's batch."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.inputs), self.targets).backward()
        self.optimizer.step()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def plain(model: nn.Module, batch: Any) -> Run:
    """Nothing is masked."""
    return Run(model, optimizer_of(model))


def attached(name: str, **options: Any) -> Callable[[nn.Module, Any], Run]:
    """``sec.attach`` with a method."""

    def start(model: nn.Module, batch: Any) -> Run:
        optimizer = optimizer_of(model)
        handle = sec.attach(
            model, optimizer, name, amount=AMOUNT, steps=10_000, data=[batch], **options
        )
        return Run(model, optimizer, handle.finish, handle)

    return start


def torch_prune(model: nn.Module, batch: Any) -> Run:
    """``torch.nn.utils.prune.random_unstructured`` on every layer."""
    places = [n.rpartition(".")[0] for n in weights_of(model)]
    for place in places:
        prune.random_unstructured(model.get_submodule(place), "weight", AMOUNT)

    def end() -> None:
        for place in places:
            prune.remove(model.get_submodule(place), "weight")

    return Run(model, optimizer_of(model), end)


def torch_ao(model: nn.Module, batch: Any) -> Run:
    """``torch.ao.pruning.WeightNormSparsifier`` on every layer; it prunes by magnitude."""
    sparsifier = WeightNormSparsifier(
        sparsity_level=AMOUNT, sparse_block_shape=(1, 1), zeros_per_block=1
    )
    sparsifier.prepare(model, [{"tensor_fqn": n} for n in weights_of(model)])
    sparsifier.step()
    return Run(model, optimizer_of(model), sparsifier.squash_mask)


TOOLS: dict[str, Callable[[nn.Module, Any], Run]] = {
    "plain": plain,
    "secateur, fixed masks (random)": attached("random"),
    "secateur, RigL every 100 steps": attached("rigl"),
    "secateur, gradual magnitude every 100 steps": attached("gradual_magnitude", every=100),
    "torch.nn.utils.prune": torch_prune,
    "torch.ao.pruning": torch_ao,
}
