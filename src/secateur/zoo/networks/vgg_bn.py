"""A small VGG with batch norm (Simonyan and Zisserman, arXiv:1409.1556)."""

import torch
from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="fashion_mnist", epochs=6, lr=0.05)
LAYERS = (16, 16, "M", 32, 32, "M", 64, 64, "M", 128, 128)


class VGG(nn.Module):
    """Eight 3 x 3 convolutions with batch norm, then a classifier of two layers."""

    def __init__(self, layers: tuple[int | str, ...] = LAYERS, num_classes: int = 10) -> None:
        super().__init__()
        self.features = self._make_layers(layers)
        self.classifier = nn.Sequential(
            nn.Linear(128 * 3 * 3, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(128, num_classes),
        )

    @staticmethod
    def _make_layers(layers: tuple[int | str, ...]) -> nn.Sequential:
        made: list[nn.Module] = []
        in_channels = 1
        for layer in layers:
            if isinstance(layer, str):
                made.append(nn.MaxPool2d(2))
                continue
            made += [nn.Conv2d(in_channels, layer, 3, padding=1), nn.BatchNorm2d(layer)]
            made.append(nn.ReLU(inplace=True))
            in_channels = layer
        return nn.Sequential(*made)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 28, 28)` to logits `(batch, num_classes)`."""
        x = torch.flatten(self.features(x), 1)
        return self.classifier(x)


def build() -> nn.Module:
    """Make the untrained network."""
    return VGG()
