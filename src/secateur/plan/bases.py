"""Shortcuts: matrices between blocks, so that each block can have a basis of its own.

Norms must not know the basis: layer norms become RMS norms, and what reads them takes their bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError

SHORTCUT = "shortcut"
BECOMES = ("rms", "biased")  # a layer norm without mean and shift; a layer that had no bias


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


def become(model: nn.Module, modules: dict[str, str]) -> None:
    """Make layer norms RMS norms with scales of one, and give layers biases of zero, in place.

    Args:
        model: Any module.
        modules: Name of a module -> ``"rms"`` or ``"biased"``.

    Raises:
        PlanError: The model lacks a module, or it is none of that sort.
    """
    known = dict(model.named_modules())
    for name, what in modules.items():
        found: Any = known.get(name)
        norm = what == "rms"
        kind = nn.LayerNorm if norm else nn.Linear
        if not isinstance(found, kind) or (found.bias is not None and not norm):
            raise PlanError(
                f"the plan changes {name!r}, which this {type(model).__name__} has not, or not "
                f"as a {'layer norm' if norm else 'linear layer without bias'}: give the model "
                "that the plan was made for"
            )
        module: Any = found
        weight = module.weight
        if norm:
            rms = nn.RMSNorm(module.normalized_shape, module.eps)
            rms.weight = nn.Parameter(torch.ones_like(weight), weight.requires_grad)
            model.set_submodule(name, rms.train(module.training))
        else:
            bias = nn.Parameter(torch.zeros_like(weight[:, 0]), weight.requires_grad)
            module.register_parameter("bias", bias)


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


@torch.no_grad()
def offset(norm: nn.Module) -> float:
    """What the norm adds to its weight before it multiplies by it: 1 in Gemma, else 0."""
    weight: Any = norm.weight
    shift = norm._parameters.get("bias")
    before, x = weight.clone(), torch.ones_like(weight)[None]
    x[:, ::2] = -1  # without a mean
    at = []
    for value in (0.0, 1.0):
        weight.fill_(value)
        y = norm(x) if shift is None else norm(x) - shift
        at.append(float((y * x).double().mean()))
    weight.copy_(before)
    return float(round(at[0] / (at[1] - at[0])))


@torch.no_grad()
def neutral(norm: nn.Module, scale: float = 1.0) -> None:
    """Let the norm multiply by one number only."""
    norm.weight.fill_(scale - offset(norm))  # type: ignore[operator, union-attr]
