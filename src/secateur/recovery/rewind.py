"""Rewinding: go back to an earlier step of training, with weights or the learning rate alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import ConfigError, StoreError
from secateur.measure.calling import words
from secateur.recovery.fine_tune import FineTune
from secateur.recovery.registry import member
from secateur.recovery.reset import reset_to, restored


@member("rewind")
@dataclass(frozen=True)
class Rewind:
    r"""Take training up again at ``step`` $k$ of ``base``: its data order and learning rates.

    With ``weights`` $\theta_k$ the network starts from $m \odot \theta_k$ (a lottery ticket; $k=0$
    is resetting to the initial values); without, from the weights it has, so that only the
    learning rate goes back. $\theta_k$ and $\theta_T$ come from one run in two parts:

    >>> net, data = nn.Linear(4, 2), [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))] * 4
    >>> _ = FineTune(epochs=2, stop=3, progress=False).heal(net, data=data)
    >>> early = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    >>> _ = FineTune(epochs=2, start=3, progress=False).heal(net, data=data)
    >>> how = Rewind(step=3, weights=early, base=FineTune(epochs=2, progress=False))
    >>> how.heal(net, data=data)["steps"]
    5

    Args:
        step: $k$, a step of the run that ``base`` describes.
        weights: the dense model's state dict at that step, or a safetensors file of it; ``None``
            keeps the weights.
        base: the whole run.

    Paper: Frankle et al., arXiv:1912.05671; Renda et al., arXiv:2003.02389 (learning rate).
    """

    step: int = 0
    weights: Mapping[str, Tensor] | str | Path | None = None
    base: FineTune = FineTune()  # noqa: RUF009

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Reset ``model`` in place, if to anything, and train it from ``step`` on.

        Raises:
            ConfigError: weights that are not the dense model's, or a step beyond the run.
            DataError: what ``FineTune`` refuses; no ``teacher`` for a plan of channels.
            StoreError: the file of weights cannot be read.
        """
        if self.base.start:
            raise ConfigError(f"Rewind: step={self.step} says where to start, base.start= cannot.")
        with restored(model):
            if self.weights is not None:
                reset_to(model, plan, self._early(), teacher, "Rewind")
            report = replace(self.base, start=self.step).heal(model, plan, data, teacher)
        kept = "rate" if self.weights is None else "weights"
        return report | {"recovery": "rewind", "rewound": kept, "to": self.step}

    def _early(self) -> Mapping[str, Tensor]:
        if not isinstance(self.weights, str | Path):
            assert self.weights is not None
            return self.weights
        try:
            return load_file(self.weights)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise StoreError(
                f"{self.weights} does not hold weights ({words(error)}): give the safetensors file "
                "of the dense model's state dict at step= of training."
            ) from error
