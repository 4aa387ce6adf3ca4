"""Optimizers and learning-rate schedules by name, as pure functions of progress."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateur.errors import ConfigError

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    # Smith, arXiv:1708.07120, as in torch's OneCycleLR: cosine from 1/25 up to 1 over the first 30
    # % and down to nothing over the rest.
    "one-cycle": lambda t: (
        0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * t / 0.3))
        if t < 0.3
        else 0.5 * (1 + math.cos(math.pi * (t - 0.3) / 0.7))
    ),
}


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    optimizer: str | Callable[..., Optimizer],
    lr: float | None,
    momentum: float,
    weight_decay: float,
) -> Optimizer:
    """``"sgd"``, ``"adamw"``, or a callable of the trainable parameters (and ``lr`` if set)."""
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "no parameter of the model requires a gradient: call model.requires_grad_(True), or "
            "leave the recovery out."
        )
    if callable(optimizer):
        return optimizer(trainable) if lr is None else optimizer(trainable, lr=lr)
    if optimizer == "sgd":
        rate = 0.01 if lr is None else lr
        return torch.optim.SGD(trainable, rate, momentum=momentum, weight_decay=weight_decay)
    if optimizer == "adamw":
        rate = 5e-4 if lr is None else lr
        return torch.optim.AdamW(trainable, rate, weight_decay=weight_decay)
    raise ConfigError(f"optimizer={optimizer!r} is not known: 'sgd', 'adamw' or a callable.")


def set_rate(
    optimizer: Optimizer, schedule: str | Callable[[float], float], progress: float
) -> float:
    """Set every group's rate to its first rate times the schedule's factor; returns the first."""
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise ConfigError(
            f"schedule={schedule!r} is not known: {', '.join(map(repr, SCHEDULES))} or a callable."
        )
    factor = (SCHEDULES[schedule] if isinstance(schedule, str) else schedule)(progress)
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
    return float(groups[0]["lr"])
