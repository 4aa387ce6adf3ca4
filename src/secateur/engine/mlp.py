"""The layers of a block that make up an MLP, found by what they compute and not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.engine.gram import problem
from secateur.engine.parallel import exchange, total
from secateur.engine.products import Layer
from secateur.engine.statistics import Stats

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "squared-relu": lambda x: F.relu(x).square(),
}
_TOKENS = 64  # that an equation is tried on


@dataclass(frozen=True)
class Mlp:
    """``down(activation(gate(x)) * up(x))``; without ``up`` the second factor is one.

    Attributes:
        gate, down, up: Layers, each with the statistics of its input.
        activation: Elementwise.
    """

    gate: tuple[Layer, Stats]
    down: tuple[Layer, Stats]
    activation: Callable[[Tensor], Tensor]
    up: tuple[Layer, Stats] | None = None

    @property
    def members(self) -> list[tuple[Layer, Stats]]:
        """Those that there are, ``down`` last."""
        return [member for member in (self.gate, self.up, self.down) if member is not None]


def inputs_of(stats: Stats) -> Tensor:
    """What the layer saw in this process, ``(tokens, inputs)``; maybe no token."""
    return torch.cat([stats.input_mean.new_zeros(0, len(stats.input_mean)), *stats.inputs])


def bias_of(layer: Layer, parameters: Mapping[str, Tensor]) -> Tensor:
    """The bias that belongs to a layer's weight, zero if there is none."""
    weight = parameters[layer.parameter]
    bias = parameters.get(f"{layer.parameter.rpartition('.')[0]}.bias")
    if bias is None or bias.shape != layer.shape[:1]:
        return torch.zeros(layer.shape[0], device=weight.device)
    return bias.detach().float()


def find_mlps(
    layers: Sequence[tuple[Layer, Stats]], parameters: Mapping[str, Tensor]
) -> Iterator[Mlp]:
    """Every MLP among the layers of a block; a layer is in one at most.

    A layer is the ``down`` of others if its input is what they make of theirs. Experts that one
    process saw may be new to another: all agree on what the first that finds it says.

    Args:
        layers: With statistics that hold ``inputs``.
        parameters: Of the block, biases too, by qualified name.
    """
    named = {member[0].name: member for member in layers}
    free = set(named)
    for said in chain.from_iterable(exchange(list(_found_here(layers, parameters)))):
        gate, down, up = (named.get(name or "") for name in said[:3])
        members = {name for name in said[:3] if name is not None}
        if members <= free and gate is not None and down is not None:
            free -= members
            yield Mlp(gate, down, ACTIVATIONS[said[3]], up)


def fitted(stats: Stats, inputs: Tensor, outputs: Tensor, damping: float) -> Stats:
    """Statistics of other inputs, with the ``aim`` that makes the outputs of them.

    Args:
        stats: With ``aim``, towards which damping pulls.
        inputs, outputs: ``(tokens, inputs)`` and ``(tokens, outputs)`` of this process; the result
            is of all.
        damping: Relative to the mean of the Gram matrix's diagonal.
    """
    gram = total(inputs.T @ inputs) / stats.tokens
    gap = total((outputs - inputs @ stats.aim.T).T @ inputs) / stats.tokens
    here = problem(stats.aim, Stats(stats.name, gram=gram), damping)
    aim = here.weight + torch.cholesky_solve(gap.T, here.cholesky).T
    return Stats(stats.name, tokens=stats.tokens, gram=gram, aim=aim)


def _found_here(
    layers: Sequence[tuple[Layer, Stats]], parameters: Mapping[str, Tensor]
) -> Iterator[list[str | None]]:
    """Gate, down, up (or None) and activation of each MLP that this process's inputs show."""
    free = [(layer, stats) for layer, stats in layers if stats.inputs]
    for down in list(free):
        if not any(down is layer for layer in free):
            continue
        before = [
            other for other in free if other is not down and other[0].shape[0] == down[0].shape[1]
        ]
        found = next(_fits(before, down, parameters), None)
        if found is not None:
            yield found
            free = [x for x in free if x[0].name not in found[:3]]


def _fits(
    before: Sequence[tuple[Layer, Stats]],
    down: tuple[Layer, Stats],
    parameters: Mapping[str, Tensor],
) -> Iterator[list[str | None]]:
    there = down[1].inputs[0][:_TOKENS]
    made = {}
    for layer, stats in before:
        x = stats.inputs[0]
        if len(x) == len(down[1].inputs[0]):
            weight = layer.of(parameters[layer.parameter]).float()
            made[layer.name] = x[:_TOKENS] @ weight.T + bias_of(layer, parameters)
    known = {layer.name: stats.inputs[0] for layer, stats in before if layer.name in made}
    last = down[0].name
    for activation, function in ACTIVATIONS.items():
        for gate in known:
            if _same(function(made[gate]), there):
                yield [gate, last, None, activation]
        for gate, up in permutations(known, 2):
            if known[gate] is known[up] and _same(function(made[gate]) * made[up], there):
                yield [gate, last, up, activation]


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for what half precision rounds away."""
    return bool((a - b).norm() <= 0.02 * b.norm()) and bool(b.norm() > 0)
