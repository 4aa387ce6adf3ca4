"""EViT: keep the tokens that the class token attends to, and fuse the others into one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.runtime import Counted
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method
from secateur.methods.tokens import Attention, install_between


@method(stage="runtime", paper="arXiv:2202.07800")
def evit(*, keep: float = 0.7, blocks: Sequence[int] = (3, 6, 9), fuse: bool = True) -> Method:
    r"""In some blocks $\lceil k (N - 1) \rceil$ tokens stay beside the class token.

    Which: those with the most attention from the class token, averaged over heads. The others
    become one token, their sum weighted by that attention, as in the paper not divided by its sum.

    Args:
        keep: k, the fraction that stays in each of these blocks.
        blocks: Their numbers, counted from 0; those that a model does not have do nothing.
        fuse: Add the token of what goes.

    Raises:
        ConfigError: A fraction out of range.

    Example:
        >>> evit(keep=0.5).gate.keep
        0.5
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"keep={keep} must be in (0, 1]: it is the fraction that stays")
    return Method(gate=EViT(keep, tuple(blocks), fuse))


@dataclass(frozen=True)
class EViT:
    """The gate; see ``evit``."""

    keep: float
    blocks: tuple[int, ...]
    fuse: bool

    def install(self, model: nn.Module, data: Iterable[Any] | None, out: ExitStack) -> Counted:
        return install_between(model, data, self, out, proportional=False)

    def __call__(
        self, x: Tensor, size: Tensor, seen: Attention, block: int
    ) -> tuple[Tensor, Tensor]:
        if block not in self.blocks or self.keep == 1:
            return x, size
        products = seen.query[:, :, :1] @ seen.key.transpose(-1, -2)
        attention = (products.float() * seen.scale).softmax(-1)[:, :, 0, 1:].mean(1)
        return attentive(x, size, attention, self.keep, fuse=self.fuse)


def attentive(
    x: Tensor, size: Tensor, attention: Tensor, keep: float, *, fuse: bool = True
) -> tuple[Tensor, Tensor]:
    """The class token, the tokens with most attention in their order, and one of all others.

    Args:
        x: ``(batch, 1 + tokens, width)``, the class token first.
        size: ``(batch, 1 + tokens)``.
        attention: ``(batch, tokens)``, of the class token.
        keep: Fraction of the tokens that stays.
        fuse: Add the token of the others.

    Example:
        >>> x = torch.tensor([[[9.0], [1.0], [2.0], [3.0]]])
        >>> attentive(x, torch.ones(1, 4), torch.tensor([[0.2, 0.1, 0.5]]), 0.6)[0].flatten()
        tensor([9.0000, 1.0000, 3.0000, 0.2000])
    """
    count = math.ceil(keep * attention.shape[1])
    if count >= attention.shape[1]:
        return x, size
    order = attention.argsort(dim=1, descending=True, stable=True)
    stay, gone = order[:, :count].sort(1).values, order[:, count:]
    width = (-1, -1, x.shape[-1])
    body, sizes = x[:, 1:], size[:, 1:]
    parts = [x[:, :1], body.gather(1, stay[..., None].expand(width))]
    counts = [size[:, :1], sizes.gather(1, stay)]
    if fuse:
        weight = attention.gather(1, gone)[..., None].to(x.dtype)
        lost = body.gather(1, gone[..., None].expand(width))
        parts.append((lost * weight).sum(1, keepdim=True))
        counts.append(sizes.gather(1, gone).sum(1, keepdim=True))
    return torch.cat(parts, 1), torch.cat(counts, 1)
