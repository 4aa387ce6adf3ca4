"""What a model to be tried is: a name and a way to build it with its inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from torch import nn

Built: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

SETS = {
    "operators": "cases_operators",
    "recurrent": "cases_recurrent",
    "points": "cases_points",
    "unet": "cases_unet",
    "geometric": "cases_geometric",
    "ultralytics": "cases_ultralytics",
    "transformers": "cases_transformers",
    "timm": "cases_timm",
    "torchvision": "cases_torchvision",
    "segmentation": "cases_torchvision",
    "detection": "cases_torchvision",
    "video": "cases_torchvision",
    "optical_flow": "cases_torchvision",
}


@dataclass(frozen=True)
class Case:
    """One model of one set.

    ``build`` is called only in the process that tries the model; it returns the model in eval
    mode with random weights, the positional and the keyword arguments of its forward.
    ``heavy`` models hold several hundred million parameters and run one at a time.
    """

    set: str
    name: str
    build: Callable[[], Built]
    heavy: bool = False


def cases(sets: list[str] | None = None, only: list[str] | None = None) -> Iterator[Case]:
    """Yield the cases of the named sets (all without names), restricted to the names ``only``."""
    wanted = sets or list(SETS)
    for module in dict.fromkeys(SETS[name] for name in wanted):
        for case in import_module(f"benchmarks.coverage.{module}").cases():
            if case.set in wanted and (not only or case.name in only):
                yield case
