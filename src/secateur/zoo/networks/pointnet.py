"""A small PointNet (Qi et al., arXiv:1612.00593) without the input transforms."""

from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(
    data="clouds", epochs=40, lr=5e-3, batch_size=32, optimizer="adamw", weight_decay=0.05
)


def shared(in_channels: int, out_channels: int) -> nn.Sequential:
    """Make one layer that is the same for every point."""
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, 1, bias=False), nn.BatchNorm1d(out_channels), nn.ReLU()
    )


class PointNet(nn.Module):
    """A perceptron of each point, the maximum over the points, a classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.mlp = nn.Sequential(shared(3, 64), shared(64, 64), shared(64, 128), shared(128, 256))
        self.classifier = nn.Sequential(
            nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 3, points)` to logits `(batch, num_classes)`."""
        return self.classifier(self.mlp(x).max(dim=2).values)


def build() -> nn.Module:
    """Make the untrained network."""
    return PointNet()
