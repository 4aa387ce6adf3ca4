"""LoRA: train a product of two thin matrices beside each weight, and merge it in at the end."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError
from secateur.recovery.fine_tune import FineTune
from secateur.recovery.moments import is_transposed
from secateur.recovery.registry import Recovery, member


class LowRank(nn.Module):
    """Adds ``scale * B @ A`` to a weight; B begins at zero, so that nothing changes at first.

    A weight that is ``transposed`` is stored as ``(inputs, outputs)``.
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        scale: float,
        generator: torch.Generator,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = weight.T.shape if transposed else weight.shape
        bound = 1 / math.sqrt(columns)
        start = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
        self.a = nn.Parameter(start.to(weight.device, weight.dtype))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale
        self.transposed = transposed

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer sees."""
        product = self.b @ self.a
        return weight + self.scale * (product.T if self.transposed else product)


@member("lora")
@dataclass(frozen=True)
class LoRA:
    r"""Heal with $W' = W + \frac{\alpha}{r} B A$, of which only $A$ and $B$ are trained.

    Afterwards the product is merged into the weights: the model has the same modules, names and
    shapes as before. Everything else is frozen meanwhile.

    Args:
        rank: $r$.
        alpha: $\alpha$.
        layers: globs of the linear layers (GPT-2's ``Conv1D`` too); ``None``: all whose weight is
            not shared.
        base: the training: ``FineTune``, or ``Distil`` towards the dense model.
        seed: of the initial $A$.

    Paper: Hu et al., LoRA, arXiv:2106.09685.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: Sequence[str] | None = None
    base: Recovery = FineTune(optimizer="adamw", lr=1e-3)  # noqa: RUF009
    seed: int = 0

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Train ``model`` in place; on an error it is given back as it came.

        Returns:
            What the base reports, and ``layers``: how many were trained.

        Raises:
            ConfigError: a rank below 1, no layer that matches, or a plan of masks.
            DataError: what the base raises.

        Example:
            >>> data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
            >>> how = LoRA(rank=1, base=FineTune(steps=3, progress=False))
            >>> how.heal(nn.Sequential(nn.Linear(4, 2)), data=data)["layers"]
            1
        """
        if self.rank < 1:
            raise ConfigError(f"LoRA(rank={self.rank}): give 1 or more.")
        if isinstance(plan, MaskSet):
            raise ConfigError(
                "LoRA fills the zeros of a mask when it is merged: use it after units were removed."
            )
        layers = self._layers(model)
        flags = [(p, p.requires_grad) for p in model.parameters()]
        generator = torch.Generator().manual_seed(self.seed)
        done = False
        try:
            model.requires_grad_(False)
            for layer in layers:
                scale, transposed = self.alpha / self.rank, is_transposed(layer)
                product = LowRank(layer.weight, self.rank, scale, generator, transposed)
                parametrize.register_parametrization(layer, "weight", product)
            report = self.base.heal(model, plan, data, teacher)
            done = True
        finally:
            for layer in layers:
                if parametrize.is_parametrized(layer, "weight"):
                    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=done)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        return {**report, "recovery": "lora", "layers": len(layers)}

    def _layers(self, model: nn.Module) -> list[Any]:
        named = [
            (n, m) for n, m in model.named_modules() if type(m) is nn.Linear or is_transposed(m)
        ]
        shared = Counter(id(p) for m in model.modules() for p in m._parameters.values())
        found = [
            layer
            for name, layer in named
            if shared[id(layer.weight)] == 1
            and (self.layers is None or any(fnmatchcase(name, glob) for glob in self.layers))
        ]
        if not found:
            raise ConfigError(
                f"LoRA(layers={self.layers and list(self.layers)}): no linear layer with a weight "
                "of its own matches."
            )
        return found
