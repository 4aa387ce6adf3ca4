"""What acts while a model runs: the protocol of run-time pruning, and forwards put in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

from torch import nn

Counted = Callable[[], Mapping[str, Any]]


@runtime_checkable
class RunTime(Protocol):
    """Makes a model leave out some of its work, depending on its input."""

    def install(self, model: nn.Module, data: Iterable[Any] | None, out: ExitStack) -> Counted:
        """Change how a model runs, in place; its weights and names stay as they are.

        Args:
            model: Whose forward will do less.
            data: Batches, to find out what the model is made of and to set thresholds.
            out: Given whatever takes the change out again.

        Returns:
            A function that says what was left out in the runs since.
        """
        ...


def put(module: nn.Module, forward: Callable[..., Any], out: ExitStack) -> None:
    """Let a module run another forward.

    An object that refers to its module is copied along with it; a closure would go on computing
    with the old one.
    """
    module.__dict__["forward"] = forward
    out.callback(module.__dict__.pop, "forward", None)
