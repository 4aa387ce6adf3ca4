"""ToMe: merge the tokens that are most alike, a few in every block."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.runtime import Counted
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.tokens import Attention, install_between


@method(stage="runtime", paper="arXiv:2210.09461")
def tome(*, merged: int = 8, protected: int = 1, proportional: bool = True) -> Method:
    """Every other token offers itself to the most similar one of the others; the best pairs merge.

    Similarity is the cosine of keys, averaged over heads; a merged token is the mean of its
    patches, and counts in attention as often as it has patches.

    Args:
        merged: Tokens that go in each block, at most half of those that may.
        protected: So many at the beginning never merge (the class token).
        proportional: Let tokens count by their size.

    Raises:
        ConfigError: A negative number.

    Example:
        >>> tome(merged=4).gate.merged
        4
    """
    if merged < 0 or protected < 0:
        raise ConfigError(f"merged={merged}, protected={protected}: give 0 or more")
    return Method(gate=ToMe(merged, protected, proportional))


@dataclass(frozen=True)
class ToMe:
    """The gate; see ``tome``."""

    merged: int
    protected: int
    proportional: bool

    def install(self, model: nn.Module, data: Iterable[Any] | None, out: ExitStack) -> Counted:
        return install_between(model, data, self, out, proportional=self.proportional)

    def __call__(
        self, x: Tensor, size: Tensor, seen: Attention, block: int
    ) -> tuple[Tensor, Tensor]:
        return merge(x, size, seen.key.mean(1), self.merged, self.protected)


def merge(
    x: Tensor, size: Tensor, keys: Tensor, merged: int, protected: int = 0
) -> tuple[Tensor, Tensor]:
    """Merge the pairs of most similar tokens, one of each pair at an even place.

    Args:
        x: ``(batch, tokens, width)``.
        size: ``(batch, tokens)``, patches in each.
        keys: ``(batch, tokens, dimensions)``, compared by their cosine.
        merged: How many go.
        protected: So many at the beginning stay as they are.

    Returns:
        Tokens in their order, first those at even places that stay and then those at odd ones, and
        their sizes; protected ones come first.

    Example:
        >>> x = torch.tensor([[[1.0], [1.0], [5.0], [-5.0]]])
        >>> merge(x, torch.ones(1, 4), x, 1)[0].flatten().tolist()
        [5.0, 1.0, -5.0]
    """
    merged = min(merged, (x.shape[1] - protected) // 2)
    if merged == 0:
        return x, size
    head, x = x[:, :protected], x[:, protected:]
    head_size, size = size[:, :protected], size[:, protected:]
    unit = nn.functional.normalize(keys[:, protected:].float(), dim=-1)
    likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    best, partner = likeness.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :merged], order[:, merged:].sort(-1).values
    onto = partner.gather(1, gone)
    weight = size[..., None].to(x.dtype)
    totals = torch.cat([x * weight, weight], -1)  # sums of patches, and how many
    even, odd = totals[:, ::2], totals[:, 1::2].clone()
    width = totals.shape[-1]
    odd.scatter_add_(1, _wide(onto, width), even.gather(1, _wide(gone, width)))
    left = torch.cat([even.gather(1, _wide(stay, width)), odd], 1)
    fewer, sizes = left[..., :-1] / left[..., -1:], left[..., -1]
    return torch.cat([head, fewer], 1), torch.cat([head_size, sizes.to(head_size.dtype)], 1)


def _wide(index: Tensor, width: int) -> Tensor:
    return index[..., None].expand(-1, -1, width)
