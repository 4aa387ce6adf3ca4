"""A model that can be built: what every kind of model on the command line comes down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FORMS = (
    "zoo:NAME, torchvision:NAME, timm:NAME, hf:DIR (a save_pretrained folder), FILE.py:FUNCTION, "
    "package.module:FUNCTION, or a folder that `secateur prune` wrote"
)
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Source:
    """A model that can be built.

    Attributes:
        spec: As the user writes it, with full paths.
        build: Makes the architecture; its weights do not matter.
        load: Makes it with the weights that come with it; True asks for downloaded ones.
        inputs: Example inputs of so many samples for a model; None if they must be given.
        data: The zoo's data set for it, or None.
        trained: Whether ``load(False)`` has trained weights.
    """

    spec: str
    build: Callable[[], nn.Module]
    load: Callable[[bool], nn.Module]
    inputs: Callable[[nn.Module, int], Any] | None = None
    data: str | None = None
    trained: bool = True
