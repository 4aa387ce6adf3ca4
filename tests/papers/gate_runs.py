"""A tiny regression, and its run written out by hand, for methods that gate weights."""

import torch
from torch import Tensor, nn

import secateur as sec


def batches(steps: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3 + start)
    return [
        (torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator))
        for _ in range(steps)
    ]


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 3, bias=False)


def attached(method, steps: int = 10, lr: float = 0.1, momentum: float = 0.0, **more):
    net = layer()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    handle = sec.attach(net, optimizer, method, steps=steps, **more)
    return net, optimizer, handle


def train(net, optimizer, data) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()


def gradient(effective: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """dL/dt of a mean squared error of x t^T, by its closed form."""
    return 2 / y.numel() * (x @ effective.T - y).T @ x
