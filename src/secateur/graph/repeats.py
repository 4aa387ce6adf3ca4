"""Names that differ only in their numbers, written as one: ``blocks.{0..11}.mlp.fc1``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(\d+)")


def without_numbers(text: str) -> str:
    """The text with every number replaced by ``#``: equal for the same place in two blocks."""
    return _NUMBER.sub("#", text)


def fold(names: Iterable[str]) -> list[str]:
    """Write names that differ only in numbers as patterns, in order of first appearance.

    Every pattern stands for exactly the names given: ``{0..3}`` for a run, ``{1,3}`` for a choice,
    and two of them in one pattern for all their combinations.

    Example:
        >>> fold(["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "fc"])
        ['layer1.{0,1}.conv{1,2}', 'fc']
    """
    # Odd parts are the numbers that occur in that place, even parts the text between them.
    entries: list[tuple[tuple[str, ...], ...]] = [
        tuple((part,) for part in _NUMBER.split(name)) for name in dict.fromkeys(names)
    ]
    for place in range(max(map(len, entries), default=0) // 2 * 2 - 1, 0, -2):
        merged: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        for entry in entries:
            if place < len(entry):
                rest = (*entry[:place], (), *entry[place + 1 :])
                merged.setdefault(rest, []).extend(entry[place])
            else:
                merged.setdefault(entry, [])
        entries = [
            (*rest[:place], tuple(dict.fromkeys(found)), *rest[place + 1 :]) if found else rest
            for rest, found in merged.items()
        ]
    return ["".join(_choice(part) for part in entry) for entry in entries]


def _choice(found: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    runs: list[list[str]] = []
    for number in sorted(found, key=int):
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{r[0]}..{r[-1]}" if len(r) > 2 else ",".join(r) for r in runs]
    return "{" + ",".join(shown) + "}"


def listing(names: Iterable[str], most: int = 4, *, inside: str = "") -> str:
    """Folded names separated by commas, those of one parent together, the rest counted.

    Args:
        names: The names.
        most: How many to write out.
        inside: A dotted beginning that the reader already knows; it is written ``…``.
    """
    siblings: dict[str, list[str]] = {}
    for name in fold(names):
        if inside and name.startswith(f"{inside}."):
            name = "…" + name[len(inside) :]
        *parent, last = parts(name)
        siblings.setdefault(".".join(parent), []).append(last)
    shown = []
    for before, those in siblings.items():
        shown += [f"{before}.{_braced(those)}"] if before else those
    more = len(shown) - most
    # One name is not worth the words that would stand for it.
    return ", ".join(shown) if more <= 1 else ", ".join(shown[:most]) + f", {more} more"


def parts(pattern: str) -> list[str]:
    """A name or pattern cut at its dots, those inside braces aside."""
    return re.split(r"\.(?![^{]*\})", pattern)


def shared(patterns: Iterable[str]) -> str:
    """The dotted beginning that all names or patterns have in common."""
    rows = [parts(p)[:-1] for p in patterns]
    common: list[str] = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


def _braced(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ", ".join(names) + "}"
