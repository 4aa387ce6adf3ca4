"""A small dynamic graph CNN for point clouds (Wang et al., arXiv:1801.07829)."""

import torch
from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(
    data="clouds", epochs=10, lr=5e-3, batch_size=32, optimizer="adamw", weight_decay=0.05
)


def graph_feature(x: Tensor, k: int) -> Tensor:
    """Pair each point with its k nearest: `(batch, c, n)` to `(batch, 2c, n, k)`."""
    batch, channels, points = x.shape
    near = torch.cdist(x.transpose(1, 2), x.transpose(1, 2)).topk(k, largest=False).indices
    index = near.reshape(batch, 1, points * k).expand(-1, channels, -1)
    neighbours = x.gather(2, index).view(batch, channels, points, k)
    centre = x.unsqueeze(-1).expand(-1, -1, -1, k)
    return torch.cat([neighbours - centre, centre], dim=1)


class EdgeConv(nn.Module):
    """A shared perceptron over each point's pairs, and the maximum over its neighbours."""

    def __init__(self, in_channels: int, out_channels: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv = nn.Sequential(
            nn.Conv2d(2 * in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, points)` to `(batch, out_channels, points)`."""
        return self.conv(graph_feature(x, self.k)).max(dim=-1).values


class DGCNN(nn.Module):
    """Three edge convolutions, concatenated, then maximum and mean over the points."""

    def __init__(self, k: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.edge1 = EdgeConv(3, 32, k)
        self.edge2 = EdgeConv(32, 32, k)
        self.edge3 = EdgeConv(32, 64, k)
        self.conv = nn.Sequential(
            nn.Conv1d(32 + 32 + 64, 128, 1, bias=False), nn.BatchNorm1d(128), nn.LeakyReLU(0.2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(64, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, points)` to logits `(batch, num_classes)`."""
        x1 = self.edge1(x)
        x2 = self.edge2(x1)
        x3 = self.edge3(x2)
        x = self.conv(torch.cat([x1, x2, x3], dim=1))
        return self.classifier(torch.cat([x.amax(-1), x.mean(-1)], dim=1))


def build() -> nn.Module:
    """Make the untrained network."""
    return DGCNN()
