"""N:M: of every m consecutive weights along the contracted axis, n go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from secateur.engine.masks import Weights
from secateur.errors import ConfigError
from secateur.granularity.registry import (
    Elements,
    TensorUnits,
    Units,
    granularity,
    tensor_units,
)


@dataclass(frozen=True)
class NMUnits(TensorUnits):
    """Single weights of which the pattern says how many stay.

    Attributes:
        axes: Parameter -> the axis along which its groups run.
    """

    n: int = 2
    m: int = 4
    axes: Mapping[str, int] = field(default_factory=dict)

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The m - n highest of every group stay; ties go to the lower index."""
        keep = {}
        for name, flat in scores.items():
            axis = self.axes[name]
            moved = flat.view(self.shapes[name]).movedim(axis, -1)
            groups = moved.reshape(-1, self.m)
            order = groups.argsort(dim=1, descending=True, stable=True)
            kept = order.argsort(dim=1) < self.m - self.n
            keep[name] = kept.view(moved.shape).movedim(-1, axis).reshape(-1)
        return keep


@granularity("n:m")
def n_m(parameters: Elements, graph: Any = None, *, n: int = 2, m: int = 4) -> Units:
    """Groups of m along the input axis of ``(out, in, ...)``, at each place of a kernel.

    Where ``weights_of`` found the weights, the input axis is that of their layer: the first one of
    transposed convolutions, inside each of their groups, and of ``Conv1D`` of Transformers.

    Args:
        parameters: Name -> weight.
        graph: Not used.
        n: How many of each group go, 0 < n < m.
        m: Size of a group.

    Raises:
        ConfigError: n and m do not fit each other, or m does not divide a weight's inputs.

    Example:
        >>> found = n_m({"weight": torch.ones(1, 4)})
        >>> found.constrained({"weight": torch.tensor([1.0, 4.0, 3.0, 2.0])})
        {'weight': tensor([False,  True,  True, False])}
    """
    if not 0 < n < m:
        raise ConfigError(f"pattern {n}:{m}: of every m weights n go, so 0 < n < m")
    known = parameters.inputs if isinstance(parameters, Weights) else {}
    axes = {}
    for name, tensor in parameters.items():
        axes[name], inputs = known.get(name, (1, tensor.shape[1] if tensor.dim() > 1 else 0))
        if not inputs or inputs % m:
            raise ConfigError(
                f"pattern {n}:{m} does not fit {name} of shape {list(tensor.shape)} with {inputs} "
                f"inputs of each output: these must be a multiple of {m}; name it in ignore="
            )
    base = tensor_units(parameters, lambda shape: None)
    return NMUnits(base.of, base.shapes, base.sizes, base.counts, n, m, axes)
