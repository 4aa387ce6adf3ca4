"""``gate``: let a model leave out work while it runs, depending on what it is given."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.engine.runtime import Counted, RunTime
from secateur.errors import ConfigError
from secateur.methods import registry


@dataclass(frozen=True, repr=False)
class Gated:
    """A model that leaves out work while it runs.

    Attributes:
        model: Runs, trains and is measured like any other; its state dict is that of the dense one.
        method: Name of the method.
        counted: Called, it says what was left out since the gates were set.
    """

    model: nn.Module
    method: str
    counted: Counted
    _out: ExitStack

    def remove(self) -> nn.Module:
        """Take the gates out again: the model as it was before."""
        self._out.close()
        return self.model

    def __repr__(self) -> str:
        return f"Gated({type(self.model).__name__}: {self.method}, {dict(self.counted())})"


def gate(
    model: nn.Module,
    method: Any,
    *,
    data: Iterable[Any] | None = None,
    inplace: bool = False,
    **options: Any,
) -> Gated:
    """Prune at run time: what is left out depends on the input.

    Args:
        model: A trained model; it stays as it is unless ``inplace``.
        method: Name (``sec.methods("runtime")``), (name, options) or ``Method``.
        data: Batches to find thresholds, and the blocks of the model, with.
        inplace: Put the gates into the model itself.
        **options: Of the method.

    Returns:
        The gated model, what it leaves out, and ``remove()``.

    Raises:
        ConfigError: There is no such method or option, or it does not act at run time.
        DataError: Data are missing, or the model does not run on them.
        PlanError: The model is not made of what the method gates.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> gated = gate(net, "dynatran", data=[torch.randn(16, 4)], sparsity=0.5)
        >>> gated.model(torch.randn(4, 4)).shape
        torch.Size([4, 2])
    """
    found = registry.find(method, **options)
    if not isinstance(found.gate, RunTime):
        raise ConfigError(
            f"method {found.name or 'given'} does not act at run time: it is for "
            f"{registry.belongs(found)}; sec.gate takes {', '.join(registry.names('runtime'))}"
        )
    made = model if inplace else copy.deepcopy(model)
    with ExitStack() as stack:  # a method that fails half-way leaves nothing behind
        counted = found.gate.install(made, data, stack)
        return Gated(made, found.name, counted, stack.pop_all())
