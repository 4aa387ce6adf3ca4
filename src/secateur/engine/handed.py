"""What a block hands to later ones beside its output: entries of dicts and lists it is given.

So layers share keys and values: one puts them into a dict that all are given, others read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import run
from secateur.graph.forward import map_tensors, tensors_in
from secateur.measure.calling import evaluating

HANDED = "|handed"  # after the name of a block, where its output is kept
Entries = dict[int | str, Any]


def contents(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int | str, Entries]:
    """The entries of every dict and list among the arguments, by where it is among them."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {place: _entries(value) for place, value in given if _holds(value)}


def handed(
    before: Mapping[int | str, Entries], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int | str, Entries]:
    """The entries that are new, or others than before.

    Example:
        >>> shared = {"a": 1}
        >>> before = contents((shared,), {})
        >>> shared["b"] = 2
        >>> handed(before, (shared,), {})
        {0: {'b': 2}}
    """
    found = {}
    for place, now in contents(args, kwargs).items():
        was = before.get(place, {})
        new = {key: v for key, v in now.items() if key not in was or was[key] is not v}
        if new:
            found[place] = new
    return found


def hand(
    entries: Mapping[int | str, Entries], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Write what ``handed`` found into the arguments of another call.

    Example:
        >>> shared = []
        >>> hand({"keys": {0: 5}}, (), {"keys": shared})
        >>> shared
        [5]
    """
    for place, new in entries.items():
        holder: Any = args[place] if isinstance(place, int) else kwargs[place]
        for key, value in new.items():
            if isinstance(holder, MutableSequence) and isinstance(key, int) and key >= len(holder):
                holder.append(value)
            else:
                holder[key] = value


def stand_in(output: Any, own: bool, entries: Mapping[int | str, Entries]) -> Callable[..., Any]:
    """Gives what a block gave, a copy if it is its own output, and hands on what it handed on."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hand(copied(entries), args, kwargs)
        return copied(output) if own else output

    return forward


def copied(value: Any) -> Any:
    """The same structure with copies of its tensors."""
    return map_tensors(torch.clone, value)


def _holds(value: Any) -> bool:
    return isinstance(value, MutableMapping | MutableSequence)


def _entries(value: Any) -> Entries:
    return dict(value.items() if isinstance(value, MutableMapping) else enumerate(value))


def handing_on(model: nn.Module, blocks: Sequence[str], batch: Any) -> set[str]:
    """Blocks that make something beside their output which a later block is given.

    T5's first block makes the position bias that all others add: without it they would add none.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> handing_on(net, ["0", "1"], torch.ones(1, 2))
        set()
    """
    makers: dict[int, str] = {}
    held: list[Tensor] = []  # so that no address is used twice
    found: set[str] = set()

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.update(makers[id(t)] for t in tensors_in((args, kwargs)) if id(t) in makers)

    def after(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = {id(t) for t in tensors_in((args, kwargs))}
            for t in tensors_in(output[1:]) if isinstance(output, tuple) else ():
                if id(t) not in given:
                    held.append(t)
                    makers.setdefault(id(t), name)

        return hook

    with ExitStack() as stack, evaluating(model):
        for name in blocks:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name), with_kwargs=True).remove)
        run(model, batch)
    return found
