"""Two tiny networks and a loop, for methods that act while a network trains."""

import torch
from torch import Tensor, nn


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40, 5),
    )


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def pictures(n: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1 + start)
    return [
        (torch.randn(8, 1, 9, 9, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(n)
    ]


def vectors(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 20, generator=generator), torch.randint(5, (16,), generator=generator))
        for _ in range(n)
    ]


def train(net: nn.Module, optimizer, data, before=lambda step: None, after=lambda step: None):
    """Plain training; ``before`` sees the gradients of the step to come, ``after`` its result."""
    for step, (x, y) in enumerate(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        before(step)
        optimizer.step()
        after(step)
