"""The layers of all blocks of a dense model, and what they see in one pass of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secateur.engine.batches import labelled, run, task_loss
from secateur.engine.blocks import find_blocks
from secateur.engine.gather import Gathered
from secateur.engine.gradients import frozen
from secateur.engine.padding import picked, valid_rows
from secateur.engine.products import Layer
from secateur.engine.sequential import (
    block_weights,
    copied,
    standing_in,
    token_masks,
    without_cache,
)
from secateur.engine.told import told_layers
from secateur.errors import DataError
from secateur.measure.calling import device_of, evaluating, to_device, unfused


@torch.no_grad()
def dense_norms(
    model: nn.Module, samples: Sequence[Any], ignored: Callable[[str], bool] = lambda _: False
) -> list[tuple[Layer, str, Tensor]]:
    """Every layer of the blocks with the name of its block and the norms of its inputs.

    Args:
        model: Stays as it is.
        samples: Calibration batches.
        ignored: Whether a parameter is left out.

    Example:
        >>> (layer, block, norm), *_ = dense_norms(nn.Linear(2, 1), [torch.ones(3, 2)])
        >>> layer.name, norm
        ('weight', tensor([1., 1.]))
    """
    device = device_of(model)
    batches = [to_device(batch, device) for batch in samples]
    with evaluating(model), unfused():
        gathered, owner = _watched(model, batches[0], ignored)
        for batch in batches:
            with gathered.watching(token_masks(batch)):
                run(model, batch)
    return [
        (layer, owner[layer.parameter], gathered.stats(layer).input_norm)
        for group in gathered.groups()
        for layer in group
    ]


def _watched(
    model: nn.Module, batch: Any, ignored: Callable[[str], bool]
) -> tuple[Gathered, dict[str, str]]:
    """Sums for the weights of all blocks, and the block of each weight."""
    owner: dict[str, str] = {}
    weights: dict[str, Tensor] = {}
    for block in find_blocks(model, lambda: run(model, batch)):
        for name, p in block_weights(model.get_submodule(block.name), block).items():
            if not ignored(name):
                weights[name], owner[name] = p, block.name
    return Gathered(weights), owner


@dataclass(frozen=True)
class Energies:
    """Mean squares over tokens of what goes into a layer and of the loss's gradient behind it.

    Attributes:
        layer, block: The layer, and the name of its block.
        inputs: ``(inputs,)``.
        gradients: ``(outputs,)``.
    """

    layer: Layer
    block: str
    inputs: Tensor
    gradients: Tensor


def dense_energies(
    model: nn.Module, samples: Sequence[Any], ignored: Callable[[str], bool] = lambda _: False
) -> list[Energies]:
    """One forward and one backward a sample; gradients of activations only, none of weights.

    Each block keeps its inputs alone and runs again on the way back (gradient checkpointing), so
    that one block's activations are held and not the whole model's.

    Layers are those whose module has no other and gives ``(..., outputs)``; experts that are
    stacked in one parameter and convolutions are left out.

    Args:
        model: Stays as it is.
        samples: Batches with a target or labels; ``input_ids`` alone are their own labels.
        ignored: Whether a parameter is left out.

    Raises:
        DataError: No loss follows from a batch, or it is not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> (one,) = dense_energies(net, [(torch.ones(3, 2), net(torch.ones(3, 2)).detach() + 3)])
        >>> one.inputs, one.gradients  # d/dy of the mean of (y - t)^2 is 2 (y - t) / 3
        (tensor([1., 1.]), tensor([4.]))
    """
    device = device_of(model)
    batches = [labelled(model, to_device(batch, device)) for batch in samples]
    sums: dict[str, list[Any]] = {}

    def watch(name: str) -> Callable[..., Tensor | None]:
        def forward(_: nn.Module, __: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            if not output.requires_grad:  # nothing before it is differentiable
                output = output.requires_grad_().clone()
            valid = valid_rows(output, name)
            output.register_hook(lambda gradient: backward(gradient, valid))
            return output

        def backward(gradient: Tensor, valid: Tensor | None) -> None:
            flat = picked(gradient.float(), valid)
            count, sum_ = sums.get(name, (0, 0.0))
            sums[name] = [count + len(flat), sum_ + flat.square().sum(0)]

        return forward

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(unfused())
        stack.enter_context(frozen(model.parameters()))
        gathered, owner = _watched(model, batches[0], ignored)
        for name in owner:
            module = model.get_submodule(name.rpartition(".")[0])
            if sum(p.dim() > 1 for p in module.parameters()) == 1:
                stack.callback(module.register_forward_hook(watch(name)).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_cache(model))
        for block in {owner[name]: None for name in owner}:
            stack.enter_context(_run_again(model.get_submodule(block)))
        for batch in batches:
            with gathered.watching(token_masks(batch), whole=True):
                loss = task_loss(run(model, batch), batch)
            if not bool(loss.isfinite()):
                raise DataError(
                    f"the loss is {float(loss)} on a calibration batch: look for NaN in the "
                    "inputs or the weights"
                )
            loss.backward()
    return [
        Energies(layer, owner[layer.parameter], gathered.stats(layer).input_norm.square(), g / n)
        for group in gathered.groups()
        for layer in group
        for n, g in [sums.get(layer.name, (0, None))]
        if g is not None and g.shape == (layer.shape[0],)
    ]


def _run_again(block: nn.Module) -> AbstractContextManager[None]:
    """Meanwhile a block forgets its activations after a forward and makes them again for backward.

    Example:
        >>> net, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> with _run_again(net):
        ...     net(x).sum().backward()
        >>> torch.equal(x.grad, net.weight)
        True
    """
    forward = block.forward

    def on_copies(*args: Any, **kwargs: Any) -> Any:  # blocks may add to their input in place
        args, kwargs = copied((args, kwargs))
        return forward(*args, **kwargs)

    def function(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(on_copies, *args, use_reentrant=False, **kwargs)

    return standing_in(block, function)


def matrices(
    model: nn.Module, ignored: Callable[[str], bool]
) -> Iterator[tuple[Layer, str, Tensor]]:
    """Every layer of the blocks that classes and shapes tell, its block and its matrix."""
    for block in find_blocks(model):
        for layer, p in told_layers(model.get_submodule(block.name), block, ignored)[0]:
            yield layer, block.name, layer.of(p)
