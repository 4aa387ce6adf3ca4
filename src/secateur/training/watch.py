"""What a loop's backward passes have reached since the last step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class Watch:
    """Sees gradients arrive at parameters, whatever the loop does with them afterwards."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.told: dict[int, Tensor] = {}
        self.handles = [p.register_hook(self._arrives(p)) for p in parameters if p.requires_grad]

    def _arrives(self, p: Tensor) -> Any:
        def hook(_: Tensor) -> None:
            self.told[id(p)] = p

        return hook

    def saw(self, p: Tensor) -> bool:
        """Whether a gradient has come to it since the last step."""
        return id(p) in self.told

    def clear(self) -> None:
        """A step is over."""
        self.told.clear()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
