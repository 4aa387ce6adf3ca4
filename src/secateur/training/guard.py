"""Steps that are not taken: gradients that are not finite, and what their forward has spoiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.engine.ranks import everywhere, local


class Guard:
    """Finds gradients that are not finite; a step that is skipped leaves no trace.

    The forward that made such gradients has already moved the running statistics of batch norms, so
    these are kept as they were after the last good step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [m for m in model.modules() if isinstance(m, _NormBase)]
        self.kept: list[Tensor] = []
        self.keep()

    def _statistics(self) -> list[Tensor]:
        return [b for norm in self.norms for b in norm.buffers(recurse=False)]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the statistics of norms."""
        now = self._statistics()
        if [b.device for b in now] != [b.device for b in self.kept]:
            self.kept = [b.clone() for b in now]
        elif now:
            torch._foreach_copy_(self.kept, now)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the norms back what was remembered."""
        for now, kept in zip(self._statistics(), self.kept, strict=True):
            now.copy_(kept)


@torch.no_grad()
def finite(gradients: Sequence[Tensor]) -> bool:
    """Whether all gradients of all ranks are finite.

    Example:
        >>> finite([torch.ones(2)]), finite([torch.tensor([1.0, float("nan")])])
        (True, False)
    """
    if not gradients:
        return True
    parts = [local(g) for g in gradients]
    # The Euclidean norm is the quickest, but it can overflow where no gradient does.
    return everywhere(_bounded(parts, 2.0) or _bounded(parts, float("inf")), parts[0].device)


def _bounded(parts: list[Tensor], order: float) -> bool:
    norms = torch._foreach_norm(parts, order)
    return bool(torch.stack([n.to(norms[0].device) for n in norms]).isfinite().all())


@torch.no_grad()
def unscale(optimizer: Any, gradients: Sequence[Tensor]) -> bool:
    """Divide by the scale that a ``GradScaler`` leaves to a fused optimizer.

    Fused optimizers divide inside their kernel, too late for penalties and scores.

    Returns:
        Whether the scaler found an overflow, which is part of its search for a scale.
    """
    scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
    if scale is not None:
        torch._foreach_div_(list(gradients), scale)
        optimizer.grad_scale = None
    return overflow is not None and bool(overflow)
