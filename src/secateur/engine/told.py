"""Layers that module classes and shapes tell, where nothing is run that would show the products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from secateur.engine.blocks import Block
from secateur.engine.products import Layer
from secateur.engine.sequential import block_weights


def told_layers(
    module: nn.Module, block: Block, ignored: Callable[[str], bool] = lambda _: False
) -> tuple[list[tuple[Layer, nn.Parameter]], list[str]]:
    """The layers of a block, each with its parameter; and what may be layers but is not told.

    They are linear layers (GPT-2's ``Conv1D`` too), convolutions, packed attention projections,
    every expert of stacks, and routers beside stacks.

    Args:
        module: The block's module.
        block: Which one.
        ignored: Whether a parameter is left out.

    Example:
        >>> found, _ = told_layers(nn.Sequential(nn.Linear(2, 3)), Block("0"))
        >>> [layer.shape for layer, _ in found]
        [(3, 2)]
    """
    routers = {id(weight) for weight in _routers(module)}
    owners = {id(p): m for m in module.modules() for p in m.parameters(recurse=False)}
    layers: list[tuple[Layer, nn.Parameter]] = []
    untold = []
    for name, p in block_weights(module, block).items():
        if ignored(name):
            continue
        found = list(_matrices(owners[id(p)], p, id(p) in routers))
        untold += [] if found or name.endswith("bias") else [name]
        for matrix, part in found:
            rows, columns = matrix.shape
            (down, right), offset = matrix.stride(), part * p.stride(0)
            full = name if len(found) == 1 else f"{name}[{part}]"
            layers.append((Layer(full, name, (rows, columns), (down, right), offset), p))
    return layers, untold


def stacked(module: nn.Module) -> int:
    """How many experts a module stacks in weights of its own; 0 if it does not."""
    sizes = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3}
    return sizes.pop() if len(sizes) == 1 and len([*module.children()]) <= 1 else 0


def _matrices(owner: nn.Module, p: nn.Parameter, router: bool) -> Iterator[tuple[Tensor, int]]:
    """What a parameter multiplies activations with, ``(outputs, inputs)``, and which part it is."""
    weight = p.detach()
    if isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
        yield weight.flatten(1), 0
    elif type(owner).__name__ == "Conv1D" and weight.dim() == 2:
        yield weight.T, 0
    elif router or (isinstance(owner, nn.MultiheadAttention) and weight.dim() == 2):
        yield weight, 0
    elif weight.dim() == 3 and len(_stacks(owner)) > 1:
        transposed = _transposed(owner)
        for number, one in enumerate(weight):
            yield one.T if transposed else one, number


def _stacks(owner: nn.Module) -> dict[str, Tensor]:
    """Weights that hold a matrix of each expert."""
    if stacked(owner) < 1:
        return {}
    return {n: p for n, p in owner.named_parameters(recurse=False) if p.dim() == 3}


def _transposed(owner: nn.Module) -> bool:
    """Whether experts are stored as ``(inputs, outputs)``: they take and give the same width."""
    said = getattr(owner, "is_transposed", None)
    if isinstance(said, bool):
        return said
    stacks = _stacks(owner)
    first = next(iter(stacks.values()))
    last = next((p for n, p in stacks.items() if "down" in n), [*stacks.values()][-1])
    return first.shape[2] != last.shape[1] and first.shape[1] == last.shape[2]


def _routers(module: nn.Module) -> Iterator[Tensor]:
    """Weights with a row for each expert of a stack beside them."""
    for holder in module.modules():
        counts = {stacked(inner) for inner in holder.children() if len(_stacks(inner)) > 1}
        for inner in holder.children():
            weight = getattr(inner, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.shape[0] in counts:
                yield weight
