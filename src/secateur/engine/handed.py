"""What a block hands to later ones beside its output: entries of dicts and lists it is given.

So layers share keys and values: one puts them into a dict that all are given, others read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import torch

from secateur.graph.forward import map_tensors

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
