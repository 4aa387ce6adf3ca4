"""No recovery: the pruned model as it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.recovery.registry import member


@member("none")
@dataclass(frozen=True)
class NoRecovery:
    """Leave the pruned model alone; the baseline of every comparison.

    Example:
        >>> NoRecovery().heal(nn.Linear(2, 2))
        {'recovery': 'none'}
    """

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Do nothing and say so."""
        return {"recovery": "none"}
