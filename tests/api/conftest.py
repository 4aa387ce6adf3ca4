"""A small convolutional network on handwritten digits, trained in a second."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Snapshot = Callable[[nn.Module], dict[str, object]]


class Residual(nn.Module):
    """A residual block, two strided convolutions and a head: every class couples several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.down(x).relu().mean((2, 3)))


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    images, target = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x, torch.tensor(target)


@pytest.fixture(scope="session")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y = digits[0][:1200], digits[1][:1200]
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        batch = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def net(trained: nn.Module) -> nn.Module:
    copy = Residual()
    copy.load_state_dict(trained.state_dict())
    return copy.eval()


@pytest.fixture
def loader(digits: tuple[Tensor, Tensor]) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(digits[0][:600], digits[1][:600])
    return DataLoader(data, 100, shuffle=True, generator=generator)


@pytest.fixture
def accuracy(digits: tuple[Tensor, Tensor]) -> Callable[[nn.Module], float]:
    x, y = digits[0][1200:], digits[1][1200:]
    return lambda model: (model(x).argmax(1) == y).float().mean().item()


@pytest.fixture
def inputs(digits: tuple[Tensor, Tensor]) -> Tensor:
    return digits[0][:4]


@pytest.fixture
def snapshot() -> Snapshot:
    """Everything about a model and the process that nobody may change behind the user's back."""

    def take(model: nn.Module) -> dict[str, object]:
        tensors = {
            n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())
        }
        return {
            "bits": {n: (t.dtype, t.numpy().tobytes()) for n, t in tensors.items()},
            "identity": {n: id(p) for n, p in model.named_parameters()},
            "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
            "grad": {n: p.grad is None for n, p in model.named_parameters()},
            "training": {n: m.training for n, m in model.named_modules()},
            "hooks": {
                n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                for n, m in model.named_modules()
            },
            "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
            "forward": {n: type(m) for n, m in model.named_modules()},
            "torch": torch.get_rng_state().numpy().tobytes(),
            "python": random.getstate(),
            "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[index,union-attr]
            "grad mode": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
        }

    return take
