"""ResNet-8: ResNet-20 with one block a stage, for quick runs."""

from torch import nn

from secateur.zoo.networks.resnet20 import ResNet
from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="fashion_mnist", epochs=12, lr=0.1)


def build() -> nn.Module:
    """Make the untrained network."""
    return ResNet((1, 1, 1))
