"""Gaps: blocks that go, parts of blocks whose contribution becomes zero, experts of a router.

What is left says again how many blocks there are and which one each is: places in the list, the
``layer_idx`` by which layers find their keys and values in a cache, and the numbers and lists of
the configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.plan import bases, experts

_COUNTS = re.compile(r"n_?layers?|num_.*layers|.*_layers|depth")  # config fields that count blocks


@dataclass(frozen=True)
class Gap:
    """What is not there any more.

    Attributes:
        module: Its qualified name in the dense model.
        outputs: None for a block that is taken out of its list; of a part of a block how many
            outputs it has, 0 for a plain tensor.
        experts: Only these experts of the module go.
        shortcut: Nothing goes; a matrix of this width comes before the block.
        becomes: Nothing goes; a layer norm is an ``"rms"`` norm, a layer is ``"biased"``.
    """

    module: str
    outputs: int | None = None
    experts: tuple[int, ...] = ()
    shortcut: int = 0
    becomes: str = ""

    @property
    def goes(self) -> bool:
        """Whether a block or a part of one is left out."""
        return not (self.experts or self.shortcut or self.becomes)

    def size(self, model: nn.Module) -> int:
        """How many parameters go with it."""
        total = sum(p.numel() for p in model.get_submodule(self.module).parameters())
        if not self.experts:
            return total
        stacks = [model.get_submodule(part) for part in experts.parts(model, self.module)]
        stacked = sum(p.numel() for m in stacks for p in m.parameters(recurse=False))
        return stacked * len(self.experts) // experts.routed(model)[self.module]


class Absent(nn.Module):
    """Stands where a part of a block was, and adds nothing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros like the first tensor that comes in, in a tuple where the part gave one."""
        zeros = torch.zeros_like(first_of(args, kwargs))
        return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros


def first_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first tensor among the arguments of a call."""
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def first_replaced(output: Any, value: Tensor) -> Any:
    """An output with another first tensor."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def check_caches(model: nn.Module, gaps: Sequence[Gap]) -> None:
    """Refuse to leave out attentions alone where layers differ in how they cache.

    What is left is counted through, and would meet the cache of another kind of layer.

    Raises:
        PlanError: The config says that some layers slide and others do not, or the like.
    """
    kinds = {
        str(kind)
        for config in configs(model)
        if isinstance(found := getattr(config, "layer_types", None), list | tuple)
        for kind in found
    }
    cached = [
        gap.module
        for gap in gaps
        if gap.outputs is not None
        and any(hasattr(m, "layer_idx") for m in model.get_submodule(gap.module).modules())
    ]
    if len(kinds) > 1 and cached:
        raise PlanError(
            f"layers of this model cache in different ways ({', '.join(sorted(kinds))}), so "
            f"{cached[0]} cannot go without its block: remove whole blocks, or ignore= attentions"
        )


def drop(model: nn.Module, gaps: Sequence[Gap]) -> nn.Module:
    """Make the gaps in a model, in place.

    Raises:
        PlanError: The model lacks a module, or a block is not in a list of blocks.
    """
    bases.turn(model, {gap.module: gap.shortcut for gap in gaps if gap.shortcut})
    bases.become(model, {gap.module: gap.becomes for gap in gaps if gap.becomes})
    experts.narrow(model, [gap for gap in gaps if gap.experts])
    gaps = [gap for gap in gaps if gap.goes]
    modules = dict(model.named_modules())
    lists: dict[str, list[int]] = {}
    for gap in gaps:
        owner, _, place = gap.module.rpartition(".")
        if gap.module not in modules:
            raise PlanError(f"the plan drops {gap.module!r}, which {type(model).__name__} lacks")
        if gap.outputs is None:
            if not isinstance(modules[owner], nn.ModuleList | nn.Sequential):
                raise PlanError(f"{gap.module!r} is in no list of blocks, so it cannot be dropped")
            lists.setdefault(owner, []).append([*modules[owner]._modules].index(place))
    check_caches(model, gaps)
    for gap in gaps:
        owner, _, place = gap.module.rpartition(".")
        if gap.outputs is not None:
            setattr(modules[owner], place, Absent(gap.outputs))
    for owner, places in lists.items():
        if len(places) == len(modules[owner]):  # type: ignore[arg-type]
            raise PlanError(f"{owner} would have no block left: drop fewer")
        _recount(model, owner, len(modules[owner]), places)  # type: ignore[arg-type]
        for number in sorted(places, reverse=True):
            del modules[owner][number]  # type: ignore[operator]
    touched = {*lists, *(_list_of(g.module, modules) for g in gaps if g.outputs is not None)}
    for owner in touched - {""}:
        _renumber(modules[owner])
    return model


def _list_of(part: str, modules: Mapping[str, nn.Module]) -> str:
    """The list that holds the block of a part."""
    while part and not isinstance(modules[part], nn.ModuleList | nn.Sequential):
        part = part.rpartition(".")[0]
    return part


def _renumber(blocks: nn.Module) -> None:
    """Layers that cache something are counted through, those without a cache left out.

    A cache takes its length from its first entry, so that must not be one that nobody fills.
    """
    number = 0
    for block in blocks.children():
        inner = [m for m in block.modules() if type(getattr(m, "layer_idx", None)) is int]
        for module in inner:
            module.layer_idx = number  # type: ignore[assignment]
        lost = any(isinstance(m, Absent) for m in block.modules())
        number += any(module is not block for module in inner) or not (inner or lost)


def _recount(model: nn.Module, owner: str, count: int, gone: Sequence[int]) -> None:
    """Config fields that count the blocks, or say something about each of them.

    An encoder and a decoder may each have a config of its own, which the other's blocks are not in.
    """
    side = "decoder" if "decoder" in owner else "encoder" if "encoder" in owner else ""
    others = {"decoder": "encoder", "encoder": "decoder"}.get(side, "\0")
    for config in configs(model):
        holders = [n for n, m in model.named_modules() if getattr(m, "config", None) is config]
        around = [n for n in holders if not n or owner.startswith(f"{n}.")]
        if not around and not any(n.startswith(f"{owner}.") for n in holders):
            continue
        counts = [n for n, v in vars(config).items() if v == count and type(v) is int
                  and _COUNTS.fullmatch(n)]  # fmt: skip
        both = any(side in owner[len(n) :] for n in around)  # it is of more than this side
        of_side = [n for n in counts if side and both and side in n]
        for name in of_side or [n for n in counts if others not in n]:
            setattr(config, name, count - len(gone))
        for name, value in vars(config).items():
            if isinstance(value, list | tuple) and len(value) == count and not name.startswith("_"):
                kept = [v for k, v in enumerate(value) if k not in gone]
                setattr(config, name, type(value)(kept))


def configs(model: nn.Module) -> list[Any]:
    """The configs of a Hugging Face model, each once."""
    found = (getattr(m, "config", None) for m in model.modules())
    return list({id(c): c for c in found if is_config(c)}.values())


def is_config(value: Any) -> bool:
    """True for a config of transformers, which is not imported for this."""
    return hasattr(value, "to_json_string") and hasattr(value, "__dict__")


@contextmanager
def skipping(model: nn.Module, gaps: Sequence[Gap]) -> Iterator[nn.Module]:
    """The model itself with what the gaps name computed and then ignored: nothing is moved."""
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(experts.unchosen(model, [gap for gap in gaps if gap.experts]))
        for gap in (gap for gap in gaps if gap.goes):
            if gap.module not in modules:
                raise PlanError(f"there is no {gap.module!r} in this {type(model).__name__}")

            def ignored(_: nn.Module, args: Any, kwargs: Any, output: Any, gap: Gap = gap) -> Any:
                x = first_of(args, kwargs)
                return first_replaced(output, x if gap.outputs is None else torch.zeros_like(x))

            module = modules[gap.module]
            handle = module.register_forward_hook(ignored, with_kwargs=True)
            stack.callback(handle.remove)
        yield model
