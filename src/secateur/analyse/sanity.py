"""Sanity checks of masks found before training: does it matter which weights, or only how many?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from secateur.engine.masks import MaskSet
from secateur.engine.order import generators_kept
from secateur.errors import DataError

B = TypeVar("B")


def shuffled(masks: MaskSet, seed: int = 0) -> MaskSet:
    """The same numbers of weights in each layer at random places.

    If a network trains as well under these masks, the method has found densities, not weights.

    Args:
        masks: What a method has found.
        seed: Of the places.

    Example:
        >>> masks = MaskSet({"w": torch.arange(8).view(2, 4) < 3})
        >>> shuffled(masks).densities() == masks.densities(), shuffled(masks) == masks
        (True, False)

    Paper:
        arXiv:2009.08576; arXiv:2009.11094.
    """
    generator = torch.Generator().manual_seed(seed)
    return MaskSet({
        n: m.flatten()[torch.randperm(m.numel(), generator=generator)].view(m.shape)
        for n, m in masks.items()
    })  # fmt: skip


@torch.no_grad()
def reinitialised(model: nn.Module, masks: MaskSet | None = None, seed: int = 0) -> nn.Module:
    """Draw all weights anew, in place, as their modules do; what is masked is zero again.

    If a network trains as well from there, its ticket is in the mask, not in the values.

    Args:
        model: Its modules know how they start (``reset_parameters``), as torch's layers do.
        masks: What stays; None keeps all.
        seed: Of the new values.

    Returns:
        The model itself.

    Raises:
        PlanError: The masks are of another model; it is as it was.
        DataError: No module knows how it starts.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> old = net.weight.clone()
        >>> bool((reinitialised(net, seed=1).weight != old).all())
        True

    Paper:
        arXiv:2009.08576.
    """
    if masks is not None:
        masks.check(model)
    known = [m for m in model.modules() if callable(getattr(m, "reset_parameters", None))]
    if not known:
        raise DataError(
            f"no module of {type(model).__name__} has reset_parameters(): build the model anew"
        )
    with generators_kept([]):
        torch.manual_seed(seed)
        for module in known:
            module.reset_parameters()  # type: ignore[operator]
    if masks is not None:
        masks.apply(model)
    return model


def half(batches: Iterable[B], seed: int = 0) -> list[B]:
    """A random half of the batches, at least one, in their order, to score on.

    If a method finds as good a mask on half of the data, it does not need the data's detail.

    Args:
        batches: All.
        seed: Of the choice.

    Raises:
        DataError: There is no batch.

    Example:
        >>> len(half(range(10))), half([7])
        (5, [7])

    Paper:
        arXiv:2009.11094.
    """
    known: list[Any] = list(batches)
    if not known:
        raise DataError("there is no batch to take half of")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(known), generator=generator)[: max(len(known) // 2, 1)]
    return [known[i] for i in sorted(chosen.tolist())]
