"""What a loop's backward passes have reached, and what of it the loop has thrown away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Watch:
    """Sees gradients arrive at weights and auxiliaries; the latter go where the former went.

    A loop knows its weights only. If it has set all their gradients to None or zero since they
    came, or if its scaler has skipped the step, then the auxiliaries' gradients of that backward
    count no more. This is seen when the next backward reaches the first of them, before it adds to
    any. A gate whose weights get no gradients at all says nothing but the scaler's skips.
    """

    def __init__(self, weights: Iterable[Tensor], trained: Sequence[Tensor], scaler: Any) -> None:
        self.trained, self.scaler = trained, scaler
        self.told: dict[int, Tensor] = {}
        self.scale: float | None = None
        self.newest, self.deaf = -1, False
        learning = [p for p in weights if p.requires_grad]
        self.handles = [p.register_hook(self._arrives(p)) for p in learning]
        self.handles += [t.register_hook(self._arrives(None)) for t in trained]

    def _arrives(self, p: Tensor | None) -> Any:
        def hook(_: Tensor) -> None:
            if self.deaf:
                return
            backward = torch._C._current_graph_task_id()
            if backward > self.newest:
                self.newest = backward
                self._begins()
            if p is not None:
                self.told[id(p)] = p

        return hook

    def _begins(self) -> None:
        before, self.scale = self.scale, self._scale()
        if all(t.grad is None for t in self.trained):
            return
        left = [p.grad for p in self.told.values() if p.grad is not None]
        thrown = bool(self.told) and not any(bool(g.any()) for g in left)
        if thrown or before != self.scale:  # a scale changes when its step has been skipped
            for t in self.trained:
                t.grad = None
            self.told.clear()

    def _scale(self) -> float | None:
        enabled = self.scaler is not None and self.scaler.is_enabled()
        return float(self.scaler.get_scale()) if enabled else None

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Backward passes that are not the loop's."""
        self.deaf = True
        try:
            yield
        finally:
            self.deaf = False

    def saw(self, p: Tensor) -> bool:
        """Whether a gradient has come to it since the last step."""
        return id(p) in self.told

    def clear(self) -> None:
        """A step is over."""
        self.told.clear()
        self.scale = None

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
