"""ResNet-20 in the CIFAR style (He et al., arXiv:1512.03385) for 28 x 28 grey images."""

from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="fashion_mnist", epochs=12, lr=0.1)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, channels, h / stride, w / stride)`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A stem of stride 2 and three stages of basic blocks, 16-32-64 channels wide.

    The stem halves the image at once: a quarter of the operations for half a point of accuracy.

    Args:
        depths: number of blocks of each stage.
        num_classes: number of outputs.
    """

    def __init__(self, depths: tuple[int, int, int], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.in_channels = 16
        self.layer1 = self._stage(16, depths[0], 1)
        self.layer2 = self._stage(32, depths[1], 2)
        self.layer3 = self._stage(64, depths[2], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def _stage(self, channels: int, depth: int, stride: int) -> nn.Sequential:
        blocks = []
        for index in range(depth):
            blocks.append(BasicBlock(self.in_channels, channels, stride if index == 0 else 1))
            self.in_channels = channels
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 28, 28)` to logits `(batch, num_classes)`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def build() -> nn.Module:
    """Make the untrained network."""
    return ResNet((3, 3, 3))
