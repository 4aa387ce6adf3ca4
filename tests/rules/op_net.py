"""A network as named layers and a function of them, and the register of cases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CASES: dict[str, "OpCase"] = {}


@dataclass(frozen=True)
class OpCase:
    """A network, the inputs it runs on, and the subtlety it is there for."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def claim(self) -> str:
        return self.build.__doc__ or ""


class Net(nn.Module):
    """Layers by name, and a function that is called with the network and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.function(self, *inputs, **keywords)


def images(channels: int = 3, side: tuple[int, int] = (8, 12)) -> Tensor:
    """Two images; the sides are no channel count."""
    return torch.randn(2, channels, *side, generator=torch.Generator().manual_seed(0))


def tokens(width: int = 14, length: int = 9) -> Tensor:
    """Two sequences of vectors."""
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(0))


def words(length: int = 9, vocabulary: int = 50) -> Tensor:
    """Two sequences of token ids."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (2, length), generator=generator)


def case(*inputs: Any, **keywords: Any) -> Callable[[Callable[[], nn.Module]], Callable]:
    """Register the decorated builder under its name, to be run on these inputs."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        name = build.__name__
        assert name not in CASES, name
        CASES[name] = OpCase(name, build, inputs, keywords)
        return build

    return register


def conv(before: int, after: int, side: int = 3, **options: Any) -> nn.Conv2d:
    """Convolution that keeps the size of the image."""
    return nn.Conv2d(before, after, side, padding=side // 2, **options)


def pooled(x: Tensor) -> Tensor:
    """Mean over the image."""
    return x.mean((2, 3))
