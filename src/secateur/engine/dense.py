"""The layers of all blocks of a dense model, and what they see in one pass of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import run
from secateur.engine.blocks import find_blocks
from secateur.engine.gather import Gathered
from secateur.engine.products import Layer
from secateur.engine.sequential import block_weights, token_masks
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
        blocks = find_blocks(model, lambda: run(model, batches[0]))
        owner: dict[str, str] = {}
        weights: dict[str, Tensor] = {}
        for block in blocks:
            for name, p in block_weights(model.get_submodule(block.name), block).items():
                if not ignored(name):
                    weights[name], owner[name] = p, block.name
        gathered = Gathered(weights)
        for batch in batches:
            with gathered.watching(token_masks(batch)):
                run(model, batch)
    return [
        (layer, owner[layer.parameter], gathered.stats(layer).input_norm)
        for group in gathered.groups()
        for layer in group
    ]


def matrices(
    model: nn.Module, ignored: Callable[[str], bool]
) -> Iterator[tuple[Layer, str, Tensor]]:
    """Every layer of the blocks that its module's class tells, its block and its matrix."""
    modules = dict(model.named_modules())
    for block in find_blocks(model):
        prefix = f"{block.name}." if block.name else ""
        for name, p in modules[block.name].named_parameters():
            owner = modules[(prefix + name).rpartition(".")[0]]
            plain = isinstance(owner, nn.Linear | nn.modules.conv._ConvNd)
            if p.dim() < 2 or not plain or ignored(prefix + name):
                continue
            matrix = p.detach().flatten(1)
            shape, stride = (*matrix.shape,), (*matrix.stride(),)
            yield Layer(prefix + name, prefix + name, shape, stride), block.name, matrix  # type: ignore[arg-type]
