"""Acting on training through the optimizer's hooks, so that nobody's loop has to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError

_ATTACHED = "_secateur_attached"


class Penalty(Protocol):
    """A gradient that is added to the loss's before every step, and what it remembers."""

    def add_gradients(self, parameters: dict[str, nn.Parameter]) -> None:
        """Add the penalty's gradient to ``.grad`` of each parameter that has one."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass
class Handle:
    """An attachment; ``detach()`` ends it, ``state_dict()`` resumes it."""

    penalty: Penalty
    optimizer: torch.optim.Optimizer
    steps: int = 0
    _hooks: list[Any] = field(default_factory=list)

    def detach(self) -> None:
        """Remove every hook; the optimizer can be attached to again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.optimizer.__dict__.pop(_ATTACHED, None)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "penalty": self.penalty.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.penalty.load_state_dict(state["penalty"])


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, penalty: Penalty) -> Handle:
    r"""Add a penalty's gradient before every step of ``optimizer``.

    The loop stays as it is: loss, ``backward()``, ``optimizer.step()``. Clipping done by the loop
    before the step does not see the penalty, and gradient accumulation adds it once a step.

    Args:
        model: Whose parameters the penalty is about.
        optimizer: Its optimizer.
        penalty: Such as ``GroupSparsity``.

    Raises:
        ConfigError: The optimizer holds none of the model's parameters, or has an attachment.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> from secateur.graph import trace
        >>> from secateur.methods.during.group_sparsity import GroupSparsity
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = attach(net, optimizer, GroupSparsity(trace(net, torch.randn(2, 4))))
        >>> net(torch.randn(2, 4)).sum().backward(); optimizer.step(); handle.steps
        1
    """
    if _ATTACHED in optimizer.__dict__:
        raise ConfigError(
            f"this {type(optimizer).__name__} has an attachment already: detach() it first"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in held}
    if not parameters:
        raise ConfigError(
            f"the {type(optimizer).__name__} holds none of the model's parameters: make it from "
            "model.parameters()"
        )
    handle = Handle(penalty, optimizer)

    def before(_: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        penalty.add_gradients(parameters)
        handle.steps += 1

    register: Callable[..., Any] = optimizer.register_step_pre_hook
    handle._hooks.append(register(before))
    optimizer.__dict__[_ATTACHED] = True
    return handle
