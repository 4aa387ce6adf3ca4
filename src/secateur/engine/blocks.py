"""The blocks of a model, found from its module tree and the order of its calls."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.inputs import first_tensor
from secateur.engine.pretend import pretending


@dataclass(frozen=True)
class Block:
    """A part of a model that is worked on at once.

    Attributes:
        name: Qualified name of the module; empty for the whole model.
        chain: Name of the module that holds the block: what one block of a chain gives is what
            the next one takes.
        kept: Something other than the next block uses the output as well.
    """

    name: str
    chain: str = ""
    kept: bool = False


def find_blocks(model: nn.Module, run: Callable[[], Any] | None = None) -> tuple[Block, ...]:
    """The blocks in the order in which they are called.

    A kind of module is repeated if some module has two children of it with weights of the same
    shapes. All modules of repeated kinds are blocks, wherever they are; the outermost count. If
    only single layers repeat, every layer is a block. If a block were called more than once in a
    forward, the whole model is the only block.

    Args:
        model: Any module.
        run: Runs the model on one sample, so that the order of calls is seen. Default: the order
            of the tree is trusted, which needs no weights.

    Example:
        >>> layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Sequential(*layers), nn.Linear(4, 1))
        >>> [block.name for block in find_blocks(net)]
        ['1.0', '1.1', '1.2']
    """
    modules = dict(model.named_modules())
    names = list(_outermost(model, "", _repeated(model)))
    if not names:
        names = [n for n, m in modules.items() if _matrices(m) and not [*m.children()]]
    calls = _Calls(model)
    if run is None:
        calls.order = [*modules]
        calls.count = Counter(calls.order)
    else:
        calls = _seen(model, run, names)
    called = [name for name in calls.order if name in set(names)]
    if not called or any(calls.count[name] > 1 for name in called):
        return (Block(""),)
    outlived = calls.outlived(called)
    return tuple(Block(n, n.rpartition(".")[0], n in outlived) for n in called)


def _seen(model: nn.Module, run: Callable[[], Any], blocks: Collection[str]) -> _Calls:
    """The calls of a forward; what comes when every block has been called is pretended.

    Should it refuse, which it does where values decide, all of it is run.
    """
    with torch.no_grad(), pretending(model) as pretend:  # a graph would hold every output
        try:
            with _Calls(model, blocks, pretend.begin) as calls:
                run()
            return calls
        except Exception:
            if not pretend.begun:
                raise
    with torch.no_grad(), _Calls(model) as calls:
        run()
    return calls


def _repeated(model: nn.Module) -> set[Any]:
    """Kinds of modules, larger than one layer, that occur twice beside each other."""
    found = set()
    for module in model.modules():
        signatures = [
            (_kind(child), tuple(_matrices(child).items()))
            for child in module.children()
            if [*child.children()] and _matrices(child)
        ]
        found |= {kind for (kind, _), n in Counter(signatures).items() if n > 1}
    return found


def _kind(module: nn.Module) -> Any:
    """The class; of a container that says nothing itself, the kinds of what it contains."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        return (type(module), *(_kind(child) for child in module.children()))
    return type(module)


def _outermost(module: nn.Module, name: str, kinds: set[Any]) -> Iterator[str]:
    for n, child in module.named_children():
        full = f"{name}.{n}".lstrip(".")
        if _kind(child) in kinds and _matrices(child):
            yield full
        else:
            yield from _outermost(child, full, kinds)


def _matrices(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that multiply activations; tables that are looked up do not."""
    return {
        f"{owner}.{name}": tuple(p.shape)
        for owner, part in module.named_modules()
        if not isinstance(part, nn.Embedding)
        for name, p in part.named_parameters(recurse=False)
        if p.dim() >= 2
    }


class _Calls:
    """Which modules are called, how often, in which order, and which outputs live on."""

    def __init__(
        self,
        model: nn.Module,
        awaited: Collection[str] = (),
        complete: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.awaited, self.complete = set(awaited), complete
        self.order: list[str] = []
        self.count: Counter[str] = Counter()
        self.outputs: dict[str, Any] = {}
        self.alive_at: dict[str, set[str]] = {}

    def __enter__(self) -> _Calls:
        self.handles = []
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._before(name)))
            self.handles.append(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.alive_at[""] = {n for n, output in self.outputs.items() if output() is not None}

    def _before(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self.order += [name] if not self.count[name] else []
            self.count[name] += 1
            self.alive_at[name] = {n for n, output in self.outputs.items() if output() is not None}

        return hook

    def _after(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            tensor = first_tensor((output,), {})
            if isinstance(tensor, Tensor):
                self.outputs[name] = weakref.ref(tensor)
            if self.complete is not None and name in self.awaited:
                self.awaited.remove(name)
                if not self.awaited:
                    self.complete()

        return hook

    def outlived(self, blocks: list[str]) -> set[str]:
        """Blocks whose output is still held when the block after the next begins."""
        held = set()
        for name, later in zip(blocks, [*blocks[2:], "", ""], strict=False):
            if name in self.alive_at.get(later, ()):
                held.add(name)
        return held
