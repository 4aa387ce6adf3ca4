"""Masks that hold while something trains: what is masked gets no gradient and stays zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.engine.masks import MaskSet


@contextmanager
def held(model: nn.Module, optimizer: Optimizer, masks: MaskSet | None) -> Iterator[None]:
    """Zero what is masked, and keep it zero through every step of the optimizer.

    Gradients are masked where they arise, so that clipping sees only those of what is left.

    Args:
        model: Whose parameters the masks are of.
        optimizer: Over them.
        masks: None holds nothing.

    Raises:
        PlanError: The masks are of another model; it is as it was.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        >>> with held(layer, optimizer, MaskSet({"weight": torch.tensor([[True, False]])})):
        ...     layer(torch.ones(1, 2)).sum().backward(); optimizer.step()
        >>> layer.weight[0, 1].item()
        0.0
    """
    if masks is None:
        yield
        return
    parameters = masks.check(model)
    gone = {n: ~masks[n].to(p.device) for n, p in parameters.items()}

    def dropped(where: Tensor) -> Any:
        return lambda gradient: gradient.masked_fill(where, 0)

    @torch.no_grad()
    def zero(*_: Any) -> None:
        for name, parameter in parameters.items():
            parameter.masked_fill_(gone[name], 0)

    hooks: list[Any] = [
        p.register_hook(dropped(gone[n])) for n, p in parameters.items() if p.requires_grad
    ]
    hooks.append(optimizer.register_step_post_hook(zero))
    try:
        zero()
        yield
    finally:
        for hook in hooks:
            hook.remove()
