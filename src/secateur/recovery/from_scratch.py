"""From scratch: forget the weights and train what is left as if it had always been like this."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.recovery.fine_tune import FineTune
from secateur.recovery.registry import member
from secateur.recovery.reset import initialized, reset_to, restored


@member("from-scratch")
@dataclass(frozen=True)
class FromScratch:
    """Draw new weights and train them; what pruning chose is only the architecture or the mask.

    The control of every claim that the remaining weights, or their first values, matter.

    Args:
        build: makes the dense model anew, for models with parameters of their own that no module
            initializes; the plan is applied to it. ``None``: every module's own
            ``reset_parameters``, at the size it has now.
        seed: of the new weights.
        base: the training.

    Paper: Liu et al., arXiv:1810.05270; Frankle & Carbin, arXiv:1803.03635 (for masks).
    """

    build: Callable[[], nn.Module] | None = None
    seed: int = 0
    base: FineTune = FineTune()  # noqa: RUF009

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Initialize ``model`` in place and train it.

        Raises:
            ConfigError: a parameter that nothing initializes, and no ``build``.
            DataError: what ``FineTune`` refuses.

        Example:
            >>> data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
            >>> how = FromScratch(base=FineTune(progress=False))
            >>> how.heal(nn.Linear(4, 2), data=data)["recovery"]
            'from-scratch'
        """
        with restored(model):
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                if self.build is None:
                    initialized(model)
                else:
                    fresh = self.build()
                    reset_to(model, plan, fresh.state_dict(), fresh, "FromScratch")
            report = self.base.heal(model, plan, data, teacher)
        return report | {"recovery": "from-scratch"}
