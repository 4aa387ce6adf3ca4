"""Classifiers on the outputs of inner layers: how well these tell classes apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import logits_of, run, target_of, task_loss
from secateur.errors import DataError
from secateur.measure.calling import describe

Outputs = dict[str, list[Tensor]]


class Head(nn.Module):
    """Batch norm with the statistics of the batch, ReLU, mean over positions, linear."""

    def __init__(self, layer: nn.Module, classes: int) -> None:
        super().__init__()
        self.last = isinstance(layer, nn.Linear)  # of its outputs' axes, features are the last
        features = len(layer.weight)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(features, track_running_stats=False)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1) if self.last else x
        return self.linear(self.norm(x.flatten(2) if x.dim() > 2 else x[:, :, None]).relu().mean(2))


@contextmanager
def outputs_of(layers: Mapping[str, nn.Module]) -> Iterator[Outputs]:
    """What layers give while the block lasts, a tensor a call, in the order of first calls."""
    found: Outputs = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: found.setdefault(name, []).append(output)

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def trained_heads(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    *,
    loss: Callable[..., Tensor] | None = None,
    epochs: int = 5,
    lr: float = 0.01,
    seed: int = 0,
) -> dict[str, Head]:
    """Train a classifier on the outputs of each layer; the model stays as it is.

    Args:
        model: A classifier, in the mode in which it is to run.
        layers: Some of its linear and convolution layers, by name.
        batches: With targets, more than one sample each.
        loss: Of (output, target).
        epochs, lr: Passes over the batches, and Adam's rate.
        seed: Of the first weights.

    Raises:
        DataError: The model gives no ``(batch, classes)``, or a batch holds one sample.
    """
    with torch.no_grad():
        logits = logits_of(run(model, batches[0]))
    if logits.dim() != 2 or target_of(batches[0]) is None:
        raise DataError(
            f"a classifier and its labels are needed, but {type(model).__name__} gives "
            f"{describe(logits)} on the batch {describe(batches[0])}: outputs must be "
            "(batch, classes) and batches (inputs..., target)"
        )
    if len(logits) < 2:
        raise DataError("batches of one sample cannot be normalised: give two or more in each")
    torch.manual_seed(seed)
    heads = {name: Head(layer, logits.shape[1]) for name, layer in layers.items()}
    if not heads:
        return heads
    optimizer = torch.optim.Adam([p for h in heads.values() for p in h.to(logits).parameters()], lr)
    for batch in [b for _ in range(epochs) for b in batches]:
        with torch.no_grad(), outputs_of(layers) as seen:
            run(model, batch)
        with torch.enable_grad():
            optimizer.zero_grad()
            sum(head_loss(heads[n], seen[n], batch, loss) for n in seen).backward()  # type: ignore[union-attr]
            optimizer.step()
    return {name: head.requires_grad_(False) for name, head in heads.items()}


def head_loss(
    head: Head, outputs: Sequence[Tensor], batch: Any, loss: Callable[..., Tensor] | None
) -> Tensor:
    """The loss of a classifier on what its layer gave, averaged over the layer's calls."""
    return torch.stack([task_loss(head(x), batch, loss) for x in outputs]).mean()
