"""What is measured about a model on data, in one pass, for everything that scores or solves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.errors import DataError

# Every statistic by name. Of a tensor: shaped as the tensor or along its input axis. Of a class: one
# number a unit, shape (size,).
STATISTICS: Mapping[str, str] = {}


class Stats:
    """What was measured about one tensor or one unit class, by the names in ``STATISTICS``.

    Args:
        name: Qualified name of the tensor, or the name of the class.
        size: Number of units, for a class.
        values: The statistics.

    Example:
        >>> Stats("fc.weight", grad=torch.ones(2)).grad
        tensor([1., 1.])
    """

    def __init__(self, name: str = "", *, size: int = 0, **values: Any) -> None:
        self.name, self.size = name, size
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise DataError(
            f"statistic {name!r} of {self.name or 'this tensor'} was not gathered: "
            "name it in the criterion's needs"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__


@dataclass(frozen=True)
class Statistics:
    """Everything gathered in one pass: of tensors and of unit classes, by name."""

    tensors: Mapping[str, Stats] = field(default_factory=dict)
    classes: Mapping[str, Stats] = field(default_factory=dict)
    samples: int = 0


def collect(
    graph: Any, needs: Any, data: Any, *, loss: Any = None, classes: Any = None, seed: int = 0
) -> Statistics:
    raise DataError(f"criteria that need {sorted(needs)} are not built yet")
