"""LeNet-5 (LeCun et al., 1998) with ReLU and max pooling."""

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="fashion_mnist", epochs=10, lr=0.05)


class LeNet5(nn.Module):
    """Two convolutions and three linear layers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 28, 28)` to logits `(batch, num_classes)`."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def build() -> nn.Module:
    """Make the untrained network."""
    return LeNet5()
