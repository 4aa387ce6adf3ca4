"""Masks as factors in the type of the weights: multiplying is ten times as quick as filling."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.seams import Moment


class Factors:
    """Follows ``moment.masks`` and zeroes what they mask."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self._of: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, int]] = {}

    def changed(self) -> list[str]:
        """Names of masks that are others than when this was last asked."""
        found = []
        for name, mask in self.moment.masks.items():
            seen, version = self._seen.get(name, (None, 0))
            if seen is not mask or version != mask._version:
                self._seen[name] = (mask, mask._version)
                self._of.pop(name, None)
                found.append(name)
        return found

    def _factor(self, name: str) -> Tensor:
        if name not in self._of:
            self._of[name] = self.moment.masks[name].to(self.moment.parameters[name].dtype)
        return self._of[name]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Zero the gradients of what is masked."""
        named = [(n, p.grad) for n, p in self.moment.parameters.items() if p.grad is not None]
        if named:
            torch._foreach_mul_([g for _, g in named], [self._factor(n) for n, _ in named])

    @torch.no_grad()
    def limit_gradients(self) -> None:
        """Scale gradients of masked weights down to the root mean square of the tensor's others.

        A filter of zeros before a batch norm has no variance, so its gradient is divided by the
        root of epsilon alone: one step would make it many times as large as any other.
        """
        for name, p in self.moment.parameters.items():
            if p.grad is None or p.dim() < 2:
                continue
            mask = self.moment.masks[name]
            squares = p.grad.float().square()
            kept = (squares * mask).sum() / mask.sum().clamp(min=1)
            gone = (squares * ~mask).sum() / (~mask).sum().clamp(min=1)
            scale = (kept / gone.clamp(min=torch.finfo(gone.dtype).tiny)).sqrt().clamp(max=1)
            p.grad.mul_(mask + ~mask * scale)

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Zero what is masked."""
        names = list(self.moment.masks)
        if names:
            weights: list[Tensor] = [self.moment.parameters[n] for n in names]
            torch._foreach_mul_(weights, [self._factor(n) for n in names])
