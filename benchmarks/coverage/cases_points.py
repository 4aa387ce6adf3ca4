"""Point-cloud networks written as in their papers: PointNet, PointNet++ grouping, DGCNN."""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from benchmarks.coverage.case import Case
from torch import Tensor, nn

POINTS = 37


def shared(*widths: int) -> nn.Sequential:
    """Perceptron shared over points: 1x1 convolution, batch norm, ReLU for each width."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv1d(before, after, 1), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Transform(nn.Module):
    """PointNet's T-net: predicts a k x k matrix from the points."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.features = shared(k, 16, 32, 64)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, k * k))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.head(self.features(x).amax(-1)).view(-1, self.k, self.k)
        return matrix + torch.eye(self.k, device=x.device)


class PointNet(nn.Module):
    """Classification (arXiv:1612.00593), with or without the learned transforms."""

    def __init__(self, transforms: bool) -> None:
        super().__init__()
        self.input_transform = Transform(3) if transforms else None
        self.local = shared(3, 16, 24)
        self.feature_transform = Transform(24) if transforms else None
        self.deep = shared(24, 32, 64)
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))

    def local_features(self, x: Tensor) -> Tensor:
        if self.input_transform is not None:
            x = (x.transpose(1, 2) @ self.input_transform(x)).transpose(1, 2)
        x = self.local(x)
        if self.feature_transform is not None:
            x = (x.transpose(1, 2) @ self.feature_transform(x)).transpose(1, 2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.local_features(x)).amax(-1)).log_softmax(-1)


class PointNetSegmentation(PointNet):
    """Part segmentation: local features beside the repeated global feature."""

    def __init__(self) -> None:
        super().__init__(transforms=True)
        self.head = nn.Sequential(shared(24 + 64, 48), nn.Conv1d(48, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        local = self.local_features(x)
        whole = self.deep(local).amax(-1, keepdim=True).expand(-1, -1, x.shape[-1])
        return self.head(torch.cat([local, whole], 1))


def neighbours(x: Tensor, k: int) -> Tensor:
    """Indices (B, N, k) of the nearest points."""
    return torch.cdist(x.transpose(1, 2), x.transpose(1, 2)).topk(k, largest=False).indices


def edge_features(x: Tensor, near: Tensor) -> Tensor:
    """Edge features (B, 2C, N, k): the difference to each neighbour beside the point itself."""
    batch, channels, points = x.shape
    k = near.shape[-1]
    flat = (near + torch.arange(batch)[:, None, None] * points).view(-1)
    table = x.transpose(1, 2).reshape(batch * points, -1)
    there = table[flat].view(batch, points, k, channels)
    here = x.transpose(1, 2).unsqueeze(2).expand(-1, -1, k, -1)
    return torch.cat([there - here, here], -1).permute(0, 3, 1, 2)


class DGCNN(nn.Module):
    """Dynamic graph CNN (arXiv:1801.07829); neighbours in space, or anew in feature space."""

    def __init__(self, dynamic: bool, k: int = 5) -> None:
        super().__init__()
        self.dynamic, self.k = dynamic, k
        widths = [3, 16, 16, 32]
        self.edges = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * before, after, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            )
            for before, after in pairwise(widths)
        )
        self.deep = nn.Sequential(
            nn.Conv1d(64, 48, 1, bias=False), nn.BatchNorm1d(48), nn.LeakyReLU(0.2)
        )
        self.head = nn.Sequential(
            nn.Linear(96, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        near = neighbours(x, self.k)
        levels = []
        for edge in self.edges:
            x = edge(edge_features(x, near)).amax(-1)
            if self.dynamic:
                near = neighbours(x, self.k)
            levels.append(x)
        x = self.deep(torch.cat(levels, 1))
        pooled = [F.adaptive_max_pool1d(x, 1).flatten(1), F.adaptive_avg_pool1d(x, 1).flatten(1)]
        return self.head(torch.cat(pooled, 1))


class SetAbstraction(nn.Module):
    """PointNet++'s level (arXiv:1706.02413): centres, their neighbours, a small PointNet each."""

    def __init__(self, width_in: int, width: int, centres: int, k: int) -> None:
        super().__init__()
        self.centres, self.k = centres, k
        self.net = nn.Sequential(
            nn.Conv2d(3 + width_in, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, places: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        centre = places[:, : self.centres]
        near = torch.cdist(centre, places).topk(self.k, largest=False).indices
        batch = torch.arange(len(places))[:, None, None]
        grouped = places[batch, near] - centre[:, :, None]
        if features is not None:
            grouped = torch.cat([grouped, features[batch, near]], -1)
        return centre, self.net(grouped.permute(0, 3, 1, 2)).amax(-1).transpose(1, 2)


class PointNet2(nn.Module):
    """Two levels of set abstraction and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SetAbstraction(0, 16, 17, 6)
        self.second = SetAbstraction(16, 32, 7, 4)
        self.head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, places: Tensor) -> Tensor:
        return self.head(self.second(*self.first(places, None))[1].amax(1))


def cases() -> Iterator[Case]:
    """Yield the point-cloud networks."""
    networks = {
        "pointnet": lambda: PointNet(transforms=True),
        "pointnet_vanilla": lambda: PointNet(transforms=False),
        "pointnet_segmentation": PointNetSegmentation,
        "dgcnn": lambda: DGCNN(dynamic=True),
        "dgcnn_static": lambda: DGCNN(dynamic=False),
    }
    for name, network in networks.items():
        yield Case(
            "points",
            name,
            lambda network=network: (network().eval(), (torch.randn(2, 3, POINTS),), {}),
        )
    yield Case(
        "points", "pointnet2", lambda: (PointNet2().eval(), (torch.randn(2, POINTS, 3),), {})
    )
