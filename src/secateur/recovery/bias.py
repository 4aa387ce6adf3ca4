"""Bias: what removed inputs gave on average goes into the bias of the layer that took them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.engine.batches import Forward, require, require_finite, require_teacher
from secateur.recovery.dense_inputs import layers_fed_less
from secateur.recovery.registry import member


@member("bias")
@dataclass(frozen=True)
class Bias:
    r"""Replace each removed input by its mean: $b' = b + W_{:,P} \mu_P$.

    $P$ are the inputs that a layer lost and $\mu$ their means in the dense model, so that on these
    data the mean output of every layer stays what it was while the layers before it are dense.
    Layers without a bias get one. In a convolution with padding the border is approximate.

    Args:
        batches: how many batches to use; ``None``: all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: An et al., Fluctuation-based adaptive structured pruning, arXiv:2312.11983.
    """

    batches: int | None = None
    forward: Forward | None = None

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Change the biases of ``model`` in place; module names must be those of ``teacher``.

        Returns:
            ``layers``: the norm of what was added to each bias; ``made``: layers that had none;
            ``skipped``: layers left alone, and why.

        Raises:
            DataError: no teacher or data, batches that do not fit, numbers that are not finite.

        Example:
            >>> dense, pruned = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
            >>> _ = dense.weight.data.copy_(torch.tensor([[3.0, 5.0]]))
            >>> _ = pruned.weight.data.copy_(torch.tensor([[3.0]]))
            >>> _ = Bias().heal(pruned, None, [(torch.tensor([[1.0, 2.0]]),)], dense)
            >>> pruned.bias.item()
            10.0
        """
        dense = require_teacher(teacher, model, "Bias")
        source = require(data, "Bias")
        require_finite(model)
        found, skipped = layers_fed_less(
            model, dense, plan, {"input_mean"}, source, self.batches, self.forward, kernels=True
        )
        added = {}
        for name, layer in found.items():
            weight = layer.weight.float().sum(-1)  # over a kernel's positions
            lost = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
            lost[layer.columns] = False
            added[name] = weight[layer.rows][:, lost] @ layer.seen["input_mean"][lost]
        made = [name for name in added if model.get_submodule(name).bias is None]
        for name, shift in added.items():
            add_to_bias(model.get_submodule(name), shift)
        norms = {name: float(shift.norm()) for name, shift in added.items()}
        return {"recovery": "bias", "layers": norms, "made": made, "skipped": skipped}


@torch.no_grad()
def add_to_bias(layer: Any, shift: torch.Tensor) -> None:
    """Add to a layer's bias, which is made where there is none."""
    shift = shift.to(layer.weight.device, layer.weight.dtype)
    if layer.bias is None:
        layer.bias = nn.Parameter(shift, requires_grad=layer.weight.requires_grad)
    else:
        layer.bias += shift
