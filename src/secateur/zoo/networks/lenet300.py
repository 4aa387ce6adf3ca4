"""LeNet-300-100 (LeCun et al., 1998): the fully connected network of the pruning literature."""

from torch import Tensor, nn

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="fashion_mnist", epochs=12, lr=0.05)


class LeNet300(nn.Module):
    """Three linear layers, 300 and 100 units wide."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 28, 28)` to logits `(batch, num_classes)`."""
        x = x.view(x.size(0), -1)
        x = self.fc1(x).relu()
        x = self.fc2(x).relu()
        return self.fc3(x)


def build() -> nn.Module:
    """Make the untrained network."""
    return LeNet300()
