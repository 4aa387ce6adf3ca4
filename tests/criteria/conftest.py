"""Small networks in which units are coupled in every way that a criterion has to add up."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.graph import trace


class Residual(nn.Module):
    """stem + (1x1 to 6, depthwise, 1x1 back), with batch norms, then pooled into a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(4)
        self.up = nn.Conv2d(4, 6, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn2(self.depth(F.relu(self.bn1(self.up(x))))))
        return self.head((x + self.bn3(self.down(y))).mean((2, 3)))


class GroupedQueries(nn.Module):
    """Attention with four query heads on two key and value heads of three dimensions each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(7, 12, bias=False), nn.Linear(7, 6, bias=False)
        self.v, self.o = nn.Linear(7, 6, bias=False), nn.Linear(12, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, 3).transpose(1, 2)
        k, v = (f(x).view(b, n, 2, 3).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, n, 12))


def randomized(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


@pytest.fixture
def residual() -> Residual:
    torch.manual_seed(1)
    return randomized(Residual()).eval()


@pytest.fixture
def queries() -> GroupedQueries:
    torch.manual_seed(2)
    return GroupedQueries().eval()


@pytest.fixture
def residual_graph(residual):
    return trace(residual, torch.randn(2, 3, 6, 6))


@pytest.fixture
def queries_graph(queries):
    return trace(queries, torch.randn(2, 5, 7))


@pytest.fixture
def images() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(4, 3, 6, 6, generator=g), torch.randint(0, 5, (4,), generator=g))
        for _ in range(3)
    ]
