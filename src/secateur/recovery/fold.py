"""Fold: what removed inputs gave is said by those that stay, as far as they can."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import Forward, require, require_finite, require_teacher
from secateur.errors import ConfigError
from secateur.recovery.bias import add_to_bias
from secateur.recovery.dense_inputs import layers_fed_less
from secateur.recovery.moments import weight_rows
from secateur.recovery.registry import member


@member("fold")
@dataclass(frozen=True)
class Fold:
    r"""Regress the removed inputs on the kept ones, and fold the regression into the weights.

    With the centred second moments $C$ of a layer's inputs in the dense model, kept $K$ and
    removed $P$,

    $$W'_{:,K} = W_{:,K} + W_{:,P}\, C_{PK} (C_{KK} + \lambda I)^{-1}$$

    and the bias takes up the means. That is optimal brain surgery on whole inputs: the least
    squares fit of the dense layer's output. One pass over the dense model gives all layers;
    ``least-squares`` goes one by one and also mends what earlier layers changed.

    Args:
        ridge: relative $\lambda$: times the mean of the diagonal of $C_{KK}$.
        bias: centre, and put the means into the bias, which is made where there is none.
        batches: how many batches to use; ``None``: all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: Hassibi & Stork, Second order derivatives for network pruning, NeurIPS 1992.
    """

    ridge: float = 1e-2
    bias: bool = True
    batches: int | None = None
    forward: Forward | None = None

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Change ``model`` in place; module names must be those of ``teacher``.

        Returns:
            ``layers``: relative error of each layer's output on the dense inputs before and after;
            ``made``: layers that got a bias; ``skipped``: layers left alone, and why.

        Raises:
            ConfigError: a negative ridge.
            DataError: no teacher or data, batches that do not fit, numbers that are not finite.

        Example:
            >>> dense, pruned = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
            >>> _ = dense.weight.data.copy_(torch.tensor([[3.0, 5.0]]))
            >>> _ = pruned.weight.data.copy_(torch.tensor([[3.0]]))
            >>> x = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
            >>> _ = Fold(ridge=0).heal(pruned, None, [(x,)], dense)
            >>> round(pruned.weight.item(), 3)
            13.0
        """
        if self.ridge < 0:
            raise ConfigError(f"Fold(ridge={self.ridge}): give 0 or more.")
        dense = require_teacher(teacher, model, "Fold")
        source = require(data, "Fold")
        require_finite(model)
        needs = {"input_mean", "gram"}
        layers, skipped = layers_fed_less(
            model, dense, plan, needs, source, self.batches, self.forward
        )
        found: dict[str, tuple[Tensor, Tensor]] = {}
        errors: dict[str, dict[str, float]] = {}
        for name, layer in layers.items():
            weight = layer.weight[..., 0].double()[layer.rows]
            gram, mean = layer.seen["gram"].double(), layer.seen["input_mean"].double()
            change, shift, before, after = _folded(
                weight, gram, mean, layer.columns, self.ridge, centred=self.bias
            )
            found[name] = change, shift
            whole = ((weight @ gram) * weight).sum().clamp(min=1e-30)
            errors[name] = {"before": float((before / whole).clamp(min=0).sqrt()),
                            "after": float((after / whole).clamp(min=0).sqrt())}  # fmt: skip
        made = [n for n in found if self.bias and model.get_submodule(n).bias is None]
        with torch.no_grad():
            for name, (change, shift) in found.items():
                small = model.get_submodule(name)
                rows_of = weight_rows(small)
                rows_of += change.view(rows_of.shape).to(rows_of.dtype)
                if self.bias:
                    add_to_bias(small, shift)
        return {"recovery": "fold", "layers": errors, "made": made, "skipped": skipped}


def _folded(
    weight: Tensor, gram: Tensor, mean: Tensor, columns: Tensor, ridge: float, *, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Change of the kept columns, shift of the bias, mean squared error before and after."""
    lost = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    lost[columns] = False
    removed = weight[:, lost]
    before = ((removed @ gram[lost][:, lost]) * removed).sum()
    moments = gram - torch.outer(mean, mean) if centred else gram
    inner, cross = moments[columns][:, columns], moments[columns][:, lost]
    strength = ridge * inner.diagonal().mean().clamp(min=1e-30)
    system = inner + strength * torch.eye(len(inner)).to(inner)
    right = cross @ removed.T
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed):  # no ridge and inputs that follow from one another: the smallest change
        solved = torch.linalg.pinv(system, rtol=1e-10, hermitian=True) @ right
    else:
        solved = torch.cholesky_solve(right, factor)
    left = moments[lost][:, lost]
    after = (
        ((removed @ left) * removed).sum() - 2 * (solved * right).sum()
        + (solved * (inner @ solved)).sum()
    )  # fmt: skip
    shift = removed @ mean[lost] - solved.T @ mean[columns]
    return solved.T, shift, before, after
