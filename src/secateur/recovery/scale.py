"""Scale: each unit that stays gets one factor, so that layers say again what they said."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import Forward, require, require_finite, require_teacher
from secateur.errors import ConfigError, DataError
from secateur.graph.classes import occurrences
from secateur.recovery.dense_inputs import layers_fed_less
from secateur.recovery.moments import weight_rows
from secateur.recovery.registry import member


@member("scale")
@dataclass(frozen=True)
class Scale:
    r"""Fit one factor for each kept unit (a head, a neuron) to the dense layer's output.

    With $a_u = X_u W_{:,u}^\top$ what unit $u$ adds to the output,

    $$\min_m \lVert \sum_{u \in K} m_u a_u - \sum_u a_u \rVert^2 + \lambda \lVert m - 1 \rVert^2$$

    and the factors are multiplied into the weights. The products $a_u^\top a_v$ follow from the
    Gram matrix of the inputs: $\sum_{i \in u, j \in v} (X^\top X)_{ij} (W^\top W)_{ij}$. The paper
    fits to a mildly pruned teacher; here it is the dense model.

    Args:
        damping: relative $\lambda$: times the mean of $a_u^\top a_u$.
        largest: layers with a factor larger than this are left as they are.
        batches: how many batches to use; ``None``: all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Paper: Kwon et al., A fast post-training pruning framework for transformers, arXiv:2204.09656.
    """

    damping: float = 1e-2
    largest: float = 10.0
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
            ``layers``: smallest and largest factor; ``skipped``: layers left alone, and why.

        Raises:
            ConfigError: a negative damping.
            DataError: no plan, teacher or data, batches that do not fit, numbers not finite.

        Example:
            >>> from secateur import plan, trace
            >>> dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> data = [(torch.randn(16, 4), None)]
            >>> half = plan(trace(dense, data[0][0]), amount=0.5)
            >>> Scale().heal(half.apply(dense), half, data, dense)["recovery"]
            'scale'
        """
        if self.damping < 0:
            raise ConfigError(f"Scale(damping={self.damping}): give 0 or more.")
        if plan is None:
            raise DataError("Scale needs the plan, which says what a unit is: pass plan=")
        dense = require_teacher(teacher, model, "Scale")
        source = require(data, "Scale")
        require_finite(model)
        found, skipped = layers_fed_less(
            model, dense, plan, {"gram"}, source, self.batches, self.forward
        )
        factors: dict[str, Tensor] = {}
        report: dict[str, list[float]] = {}
        for name, layer in found.items():
            weight = layer.weight[..., 0].double()[layer.rows]
            original = dense.get_submodule(name)
            unit = _units(plan, name, 0 if weight_rows(original) is not original.weight else 1)
            factor = _factors(weight, layer.seen["gram"].double(), unit.to(weight.device),
                              layer.columns, self.damping)  # fmt: skip
            ends = [float(factor.min()), float(factor.max())]
            if max(map(abs, ends)) > self.largest:
                skipped[name] = (
                    f"a factor of {max(map(abs, ends)):.1f}, larger than {self.largest:g}"
                )
            else:
                factors[name], report[name] = factor, ends
        with torch.no_grad():
            for name, factor in factors.items():
                rows_of = weight_rows(model.get_submodule(name))
                shape = [1, -1] + [1] * (rows_of.dim() - 2)
                rows_of *= factor.view(shape).to(rows_of.dtype)
        return {"recovery": "scale", "layers": report, "skipped": skipped}


def _units(plan: Any, layer: str, axis: int) -> Tensor:
    """The unit of each input of a layer, numbered over all pruned classes that its inputs have."""
    tensor = f"{layer}.weight".lstrip(".")
    unit = None
    for name, at in occurrences(plan.axes[tensor][axis], plan.sizes):
        if name in plan.keep:
            # Of several classes along the axis (heads and their dimensions) units are the pairs.
            unit = at if unit is None else unit * plan.sizes[name] + at
    return torch.arange(plan.shapes[tensor][axis]) if unit is None else unit


def _factors(weight: Tensor, gram: Tensor, unit: Tensor, columns: Tensor, damping: float) -> Tensor:
    """One factor for each kept input, the same within a unit."""
    units, place = unit.unique(return_inverse=True)
    products = gram * (weight.T @ weight)
    size = len(units)
    whole = products.new_zeros(size, len(products)).index_add(0, place, products)
    whole = whole.new_zeros(size, size).index_add(1, place, whole)
    kept = torch.zeros(size, dtype=torch.bool, device=gram.device)
    kept[place[columns]] = True
    inner = whole[kept][:, kept]
    strength = damping * inner.diagonal().mean().clamp(min=1e-30)
    system = inner + strength * torch.eye(len(inner)).to(inner)
    change = torch.linalg.lstsq(system, whole[kept][:, ~kept].sum(1, keepdim=True)).solution[:, 0]
    factor = products.new_ones(size)
    factor[kept] += change
    return factor[place[columns]]
