"""Weights for which a wrong index shows.

Fresh networks hide mistakes: biases are 0, norm weights 1, layer scales 1e-6, the last norm of
a residual 0, tiny transformers' weights 0.02. All are given values that matter.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

SHIFTS = ("bias", "beta", "shift")


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Perturb vectors, scale up what is near zero and draw running statistics, in place."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return (torch.randn(like.shape, generator=generator) * std).to(like)

    for name, value in model.named_parameters():
        if not value.is_floating_point() or value.numel() == 0:
            continue
        vector = value.numel() == max(value.shape, default=1)
        if vector and value.abs().max() < 0.1:
            value.copy_(normal(value, 0.1))
            if not name.rpartition(".")[2].lower().endswith(SHIFTS):
                value.abs_().add_(0.5)
        elif vector:
            value.add_(normal(value, 0.1))
        else:
            fan_in = value[0].numel()
            target = 1 / math.sqrt(fan_in)
            if value.std() < 0.5 * target:
                value.copy_(normal(value, target))
    for name, value in model.named_buffers():
        leaf = name.rpartition(".")[2]
        if leaf == "running_mean":
            value.copy_(normal(value, 0.1))
        elif leaf == "running_var":
            value.copy_(torch.rand(value.shape, generator=generator).to(value) + 0.5)


@torch.no_grad()
def settle(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Bring the running statistics near those of the inputs, or deep networks grow to 1e10.

    The randomly drawn statistics become an offset and a factor of the measured ones.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm in seen:
            return
        seen.add(norm)
        x = inputs[0].transpose(0, 1).flatten(1) if inputs[0].dim() > 1 else inputs[0]
        variance = x.var(1, correction=0)
        variance = variance.clamp_min(0.25 * float(variance.mean()) + 1e-6)
        norm.running_mean.mul_(variance.sqrt()).add_(x.mean(1))
        norm.running_var.mul_(variance)

    seen: set[nn.Module] = set()
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None
    ]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms if not norm.training]
    if hooks:
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
