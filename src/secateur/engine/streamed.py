"""A model without weights, and the weights of one block at a time from a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.engine.blocks import Block
from secateur.engine.sequential import standing_in
from secateur.engine.shards import Shards
from secateur.errors import StoreError


class Names(Protocol):
    """How the tensors of a checkpoint become those of a model, and back."""

    @property
    def places(self) -> Mapping[str, str]:
        """The (first) tensor of the model that each tensor of the checkpoint goes into."""

    def load(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the model from tensors of the checkpoint."""

    def save(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the checkpoint from tensors of the model."""


@dataclass(frozen=True)
class SameNames:
    """The checkpoint is the model's ``state_dict``."""

    places: Mapping[str, str]

    def load(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def save(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in values.items() if name in self.places}


@contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made meanwhile have parameters on the meta device; buffers are real.

    Buffers often hold what no checkpoint does (frequencies of rotary embeddings, tables of
    positions), so they are computed as always; parameters never take memory.

    Example:
        >>> with weightless():
        ...     net = nn.BatchNorm1d(3)
        >>> net.weight.device.type, net.running_var.device.type
        ('meta', 'cpu')
    """
    register = nn.Module.register_parameter

    def without(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if isinstance(param, nn.Parameter) and not param.is_meta:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = without  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@dataclass
class Streamed:
    """The weights of a model that is made ``weightless``: one block's at a time.

    Called with a block, it is what ``walk`` takes as ``residence``.

    Attributes:
        model: Parameters on the meta device, except where a block is present.
        source: Where weights are read.
        target: A copy of the source, where changed weights are written.
        names: Which tensor of the checkpoint is which of the model.
    """

    model: nn.Module
    source: Shards
    target: Shards
    names: Names
    slots: dict[int, list[tuple[nn.Module, str]]] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {}  # a tied parameter is in several modules
        for module in self.model.modules():
            for leaf, p in module._parameters.items():
                if p is not None:
                    self.slots.setdefault(id(p), []).append((module, leaf))

    @contextmanager
    def __call__(self, block: Block) -> Iterator[None]:
        """The weights of the block are present for a while.

        Raises:
            StoreError: The checkpoint lacks some, or has them in another shape.
        """
        loaded = self._load(self.source, lambda place: inside(place, block.name))
        absent = self._put(loaded, [n for n, _ in self._own(block.name)])
        try:
            yield
        finally:
            for slot, meta in absent:
                slot[0]._parameters[slot[1]] = meta

    def outside(self, parts: Collection[str]) -> None:
        """Load, for good, what lies outside of some modules.

        Args:
            parts: Names of the blocks, and of what no block comes behind, as the head.
        """
        loaded = self._load(
            self.source, lambda place: not any(inside(place, part) for part in parts)
        )
        own = (name for name, _ in self._own(""))
        self._put(loaded, [n for n in own if not any(inside(n, part) for part in parts)])

    @contextmanager
    def passing(self, modules: Collection[str]) -> Iterator[None]:
        """Each of these modules has its weights while it runs, whenever it is called."""

        def present(name: str) -> Callable[..., Any]:
            compute = self.model.get_submodule(name).forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                with self(Block(name)):
                    return compute(*args, **kwargs)

            return forward

        with ExitStack() as stack:
            for name in modules:
                module = self.model.get_submodule(name)
                stack.enter_context(standing_in(module, present(name)))
            yield

    def store(self, block: Block) -> None:
        """Write the block's weights, as they are, to the copy.

        Raises:
            StoreError: The weights cannot be written back into the checkpoint's own layout.
        """
        values = {n: p.detach() for n, p in self._own(block.name) if not p.is_meta}
        stored = self.names.save(values)
        unknown = [key for key in stored if key not in self.target.places]
        if unknown:
            raise StoreError(
                f"the weights of {block.name} cannot be written back as the checkpoint has them: "
                f"{unknown[0]} is not in it. Load the model whole and use sparsify."
            )
        self.target.write({n: v.to(self.target.places[n].dtype) for n, v in stored.items()})

    @torch.no_grad()
    def reload(self, block: Block) -> None:
        """Have the block's weights as they were written.

        So the blocks after it see rounding to the checkpoint's type, if the model computes in
        another one.
        """
        values = dict(self._own(block.name))
        written = self._load(self.target, lambda place: inside(place, block.name))
        for name, value in written.items():
            if name in values and not values[name].is_meta:
                values[name].copy_(value)

    def _own(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        prefix = f"{name}." if name else ""
        yield from self.model.get_submodule(name).named_parameters(prefix.rstrip("."))

    def _load(self, shards: Shards, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        keys = [key for key, place in self.names.places.items() if wanted(place)]
        return self.names.load({key: shards.read(key) for key in keys})

    @torch.no_grad()
    def _put(
        self, loaded: dict[str, Tensor], needed: Collection[str]
    ) -> list[tuple[tuple[nn.Module, str], nn.Parameter]]:
        """Set tensors; gives the places of the parameters and what was there before."""
        before = []
        for name, value in loaded.items():
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            old: Any = module._parameters.get(leaf, module._buffers.get(leaf))
            if old is None:
                continue  # older checkpoints hold buffers that models compute now
            if old.shape != value.shape:
                raise StoreError(
                    f"{name} has the shape {list(value.shape)} in {self.source.folder}, but the "
                    f"model has {list(old.shape)}: its config belongs to another checkpoint"
                )
            if leaf in module._buffers:
                module._buffers[leaf] = value.to(old.dtype)
                continue
            if not old.is_meta:
                continue  # outside of the blocks, and the whole model is the block
            fresh = nn.Parameter(value.to(old.dtype), requires_grad=False)
            for slot in self.slots[id(old)]:
                before.append((slot, slot[0]._parameters[slot[1]]))
                slot[0]._parameters[slot[1]] = fresh
        missing = [n for n in needed if self.model.get_parameter(n).is_meta]
        if missing:
            raise StoreError(
                f"{self.source.folder} lacks {missing[0]} ({len(missing)} tensors are missing): "
                "the checkpoint is of another model, or incomplete"
            )
        return before  # type: ignore[return-value]


def inside(name: str, module: str) -> bool:
    """Whether a tensor belongs to a module, given by its qualified name."""
    return not module or name.startswith(f"{module}.")
