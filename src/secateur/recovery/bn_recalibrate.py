"""Recalibrate batch norm: the running statistics of the dense model do not fit the pruned one."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.engine.batches import Forward, require, require_finite, run, take
from secateur.errors import DataError
from secateur.measure.calling import device_of, evaluating, to_device
from secateur.recovery.registry import member


class _Moments:
    """Count, mean and sum of squared deviations by channel, merged batch by batch (Chan et al.)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.deviations = torch.zeros(())

    def add(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        x = x.to(torch.float32 if x.device.type == "mps" else torch.float64)
        rows = x.transpose(0, 1).flatten(1)
        count, mean = rows.shape[1], rows.mean(1)
        deviations = (rows - mean[:, None]).square().sum(1)
        if self.count:
            both = self.count + count
            shift = mean - self.mean
            deviations += self.deviations + shift.square() * (self.count * count / both)
            mean = self.mean + shift * (count / both)
            count = both
        self.count, self.mean, self.deviations = count, mean, deviations


@member("bn")
@dataclass(frozen=True)
class BNRecalibrate:
    r"""Set running mean and variance to those of the pruned model's own activations.

    Each layer normalises with its batch, as in training, while mean and unbiased variance of what
    it sees are gathered over all batches at once: $\mu = \frac1n\sum x$, $\sigma^2 =
    \frac{1}{n-1}\sum (x-\mu)^2$, exactly, whatever the sizes of the batches. No weight changes;
    dropout is off.

    Args:
        batches: how many batches to use; ``None``: all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: Wu & Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576 (precise BN).
    """

    batches: int | None = 50
    forward: Forward | None = None

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Recalibrate every batch norm of ``model`` that keeps running statistics.

        Raises:
            DataError: no data, batches that do not fit, or activations that are not finite.

        Example:
            >>> BNRecalibrate().heal(nn.Sequential(nn.BatchNorm1d(4)), data=[torch.randn(8, 4)])
            {'recovery': 'bn', 'layers': 1, 'batches': 1, 'unused': []}
        """
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        if not layers:
            return {"recovery": "bn", "layers": 0, "batches": 0, "unused": []}
        source = require(data, "BNRecalibrate")
        require_finite(model)
        moments = {name: _Moments() for name in layers}
        used = 0
        with evaluating(model), ExitStack() as hooks:  # which undoes what training mode moves
            for name, module in layers.items():
                module.train()
                add = moments[name].add
                handle = module.register_forward_pre_hook(add, with_kwargs=True)
                hooks.callback(handle.remove)
            for batch in take(source, self.batches):
                run(model, to_device(batch, device_of(model)), self.forward)
                used += 1
        for name, seen in moments.items():
            if seen.count and not bool(torch.isfinite(seen.mean + seen.deviations).all()):
                raise DataError(
                    f"the input of {name} is not finite on these batches: look for NaN in the data."
                )
        for name, module in layers.items():
            seen = moments[name]
            if seen.count and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(seen.mean)
                module.running_var.copy_(seen.deviations / max(seen.count - 1, 1))
                if module.num_batches_tracked is not None:
                    module.num_batches_tracked.fill_(used)
        unused = [name for name, seen in moments.items() if not seen.count]
        return {
            "recovery": "bn",
            "layers": len(layers) - len(unused),
            "batches": used,
            "unused": unused,
        }
