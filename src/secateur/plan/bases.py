"""Shortcuts: matrices between blocks, so that each block can have a basis of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError

SHORTCUT = "shortcut"


class Turned(nn.Module):
    """A block that multiplies what comes in by its matrix ``shortcut`` first."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        shortcut: Any = self._modules[SHORTCUT]
        if args and isinstance(args[0], Tensor):
            return super().forward(shortcut(args[0]), *args[1:], **kwargs)
        name = next(n for n, v in kwargs.items() if isinstance(v, Tensor))
        return super().forward(*args, **{**kwargs, name: shortcut(kwargs[name])})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (type(self).__mro__[2],), self.__dict__


def _revive(kind: type[nn.Module]) -> nn.Module:
    """Copying and sending between processes rebuild the subclass from the original class."""
    turned = _kind(kind)
    return turned.__new__(turned)


def _kind(kind: type[nn.Module]) -> Any:
    return type(kind.__name__, (Turned, kind), {"__module__": kind.__module__})


def turn(model: nn.Module, blocks: dict[str, int]) -> None:
    """Put shortcuts before blocks, in place; they are identities and change nothing yet.

    What was tied (embeddings and head) is no longer, as each is rotated in its own way.

    Args:
        model: Any module.
        blocks: Name of a block -> width of what it is given.

    Raises:
        PlanError: The model lacks a block, or it has a shortcut.
    """
    modules = dict(model.named_modules())
    for name, width in blocks.items():
        block = modules.get(name)
        if block is None or isinstance(block, Turned) or SHORTCUT in block._modules:
            raise PlanError(
                f"the plan turns {name!r}, which this {type(model).__name__} lacks or has turned"
            )
        like = next(block.parameters())
        shortcut = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)
        if not like.is_meta:
            nn.init.eye_(shortcut.weight)
        shortcut.requires_grad_(like.requires_grad)
        block.add_module(SHORTCUT, shortcut)
        block.__class__ = _kind(type(block))
    if blocks:
        _untie(model)


def _untie(model: nn.Module) -> None:
    seen: set[int] = set()
    for module in model.modules():
        for leaf, p in module._parameters.items():
            if p is not None and id(p) in seen:
                own = nn.Parameter(p.detach().clone(), p.requires_grad)
                module._parameters[leaf] = own
            elif p is not None:
                seen.add(id(p))
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # type: ignore[union-attr]


@torch.no_grad()
def rotate(model: nn.Module, tensor: str, axis: int, basis: Tensor) -> None:
    """Write an axis of a parameter in another basis: $w_j = \\sum_i w_i Q_{ij}$ along it."""
    p = model.get_parameter(tensor)
    turned = torch.tensordot(p.double(), basis.to(p.device), dims=([axis], [0]))
    p.copy_(turned.movedim(-1, axis))
