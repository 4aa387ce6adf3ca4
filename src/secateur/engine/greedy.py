"""Add the inputs of a layer one after the other, by the gradient in their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 64  # of choosing, at most: wider layers add several inputs at once


def greedy(
    start: Tensor, gradient: Callable[[Tensor, int], Tensor], refits: int, lr: float
) -> Tensor:
    """Add the inputs of a layer by the size of their gradient; the earlier, the higher the score.

    Args:
        start: Trained weights, ``(outputs, inputs, ...)``.
        gradient: Of the loss, from weights and the number of the call.
        refits, lr: Steps of descent between additions, and their rate.
    """
    count, calls = start.shape[1], 0
    kept = torch.zeros(count, dtype=torch.bool, device=start.device)
    inside = kept.view(1, -1, *[1] * (start.dim() - 2))  # the same memory, as a weight sees it
    values, scores = torch.zeros_like(start), torch.zeros(count, device=start.device)
    while not bool(kept.all()):
        found = gradient(values, calls)
        sizes = found.transpose(0, 1).flatten(1).norm(dim=1).masked_fill(kept, -1)
        left = count - int(kept.sum())
        chosen = sizes.argsort(descending=True, stable=True)[: min(left, -(-count // _ROUNDS))]
        rank = torch.arange(len(chosen), device=start.device)
        scores[chosen] = (left - rank).float() / count
        kept[chosen] = True
        values[:, chosen] = start[:, chosen]
        calls += 1
        for _ in range(refits):
            values -= lr * gradient(values, calls) * inside
            calls += 1
    return scores
