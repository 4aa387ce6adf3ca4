"""N:M: of every m consecutive weights along the contracted axis, n go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
    """Single weights of which the pattern says how many stay."""

    n: int = 2
    m: int = 4

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The m - n highest of every group stay; ties go to the lower index."""
        keep = {}
        for name, flat in scores.items():
            shape = self.shapes[name]
            groups = flat.view(shape[0], shape[1], -1).transpose(1, 2).reshape(-1, self.m)
            order = groups.argsort(dim=1, descending=True, stable=True)
            kept = order.argsort(dim=1) < self.m - self.n
            kept = kept.view(shape[0], -1, shape[1]).transpose(1, 2)
            keep[name] = kept.reshape(-1)
        return keep


@granularity("n:m")
def n_m(parameters: Elements, graph: Any = None, *, n: int = 2, m: int = 4) -> Units:
    """Groups of m along the input axis of ``(out, in, ...)``, at each place of a kernel.

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
    for name, tensor in parameters.items():
        if tensor.dim() < 2 or tensor.shape[1] % m:
            raise ConfigError(
                f"pattern {n}:{m} does not fit {name} of shape {list(tensor.shape)}: its input "
                f"axis must be a multiple of {m}; name it in ignore="
            )
    base = tensor_units(parameters, lambda shape: None)
    return NMUnits(base.of, base.shapes, base.sizes, base.counts, n, m)
