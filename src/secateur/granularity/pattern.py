"""Pattern: every kernel keeps the same few shapes of its weights, a library learnt from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.granularity.registry import (
    Elements,
    TensorUnits,
    Units,
    granularity,
    tensor_units,
)

_LOWEST = -1e30  # of what was masked before: a sum of it orders, one of infinities does not


@dataclass(frozen=True)
class PatternUnits(TensorUnits):
    """Single weights of which a library of patterns says which stay together."""

    entries: int = 4
    library: int = 8

    def patterns(self, scores: Mapping[str, Tensor]) -> dict[tuple[int, ...], Tensor]:
        """Size of a kernel -> the patterns that all kernels of that size share.

        Returns:
            Bool tensors ``(patterns, elements of a kernel)``, the most frequent first; of equally
            frequent ones the one that keeps later elements.
        """
        best: dict[tuple[int, ...], list[Tensor]] = {}
        for name, flat in scores.items():
            kernels = self._kernels(name, flat)
            first = kernels.argsort(dim=1, descending=True, stable=True)[:, : self.entries]
            own = torch.zeros_like(kernels, dtype=torch.uint8).scatter_(1, first, 1)
            best.setdefault(self.shapes[name][2:], []).append(own.cpu())
        found = {}
        for size, own_patterns in best.items():
            kinds, counts = torch.cat(own_patterns).unique(dim=0, return_counts=True)
            order = counts.argsort(descending=True, stable=True)
            found[size] = kinds[order[: self.library]].bool()
        return found

    def constrained(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of each kernel stays what the pattern covers that keeps most of its score."""
        libraries = self.patterns(scores)
        keep = {}
        for name, flat in scores.items():
            kernels = self._kernels(name, flat)
            library = libraries[self.shapes[name][2:]].to(flat.device)
            kept = kernels.clamp(min=_LOWEST) @ library.to(kernels.dtype).T
            keep[name] = library[kept.argmax(1)].flatten()
        return keep

    def _kernels(self, name: str, flat: Tensor) -> Tensor:
        out, inputs = self.shapes[name][:2]
        return flat.float().view(out * inputs, -1)


@granularity("pattern")
def pattern(
    parameters: Elements, graph: Any = None, *, entries: int = 4, library: int = 8
) -> Units:
    """Kernels of which ``entries`` weights stay, in one of ``library`` shapes (arXiv:1909.05073).

    The library is learnt: the most frequent of the shapes in which single kernels would keep their
    highest scores, over all layers with kernels of one size. Each kernel then takes the shape of
    the library that keeps most of its own score. How much goes follows from ``entries``, so an
    amount is not looked at; which whole kernels go is the granularity ``kernel``.

    Args:
        parameters: Name -> weight.
        graph: Not used.
        entries: Weights that stay in every kernel.
        library: Number of shapes for each size of kernels.

    Raises:
        ConfigError: A weight has no kernels of more than ``entries`` elements, or a number is
            below 1.

    Example:
        >>> found = pattern({"weight": torch.ones(1, 2, 1, 3)}, entries=2, library=1)
        >>> scores = torch.tensor([1.0, 4.0, 3.0, 1.0, 2.0, 3.0])
        >>> found.constrained({"weight": scores})["weight"].view(2, 3)
        tensor([[False,  True,  True],
                [False,  True,  True]])
    """
    if entries < 1 or library < 1:
        raise ConfigError(f"pattern: entries={entries} and library={library} must be at least 1")
    for name, tensor in parameters.items():
        size = tensor.shape[2:].numel() if tensor.dim() > 2 else 1
        if size <= entries:
            raise ConfigError(
                f"patterns of {entries} entries do not fit {name} of shape {list(tensor.shape)}, "
                f"whose kernels have {size}: name it in ignore="
            )
    base = tensor_units(parameters, lambda shape: None)
    return PatternUnits(base.of, base.shapes, base.sizes, base.counts, entries, library)
