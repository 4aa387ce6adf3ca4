"""Names that a user writes: globs over qualified names, and the message when one is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from secateur.errors import ConfigError


def unknown(what: str, name: str, known: Iterable[str], has: str | None = None) -> str:
    """The message for an unknown name, with the nearest known ones.

    Example:
        >>> unknown("criterion", "tailor", ["taylor", "l2"])
        "there is no criterion 'tailor': did you mean 'taylor'? (known: l2, taylor)"
    """
    known = sorted(set(known))
    close = get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f": did you mean {' or '.join(map(repr, close))}?" if close else "."
    listed = has or (f"known: {', '.join(known)}" if len(known) <= 40 else "")
    return f"there is no {what} {name!r}{hint}" + (f" ({listed})" if listed else "")


def match_names(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Which names each glob matches; ``*`` matches across dots.

    Raises:
        ConfigError: A pattern that is no text, as a module object.
    """
    patterns = list(patterns)
    for p in patterns:
        if not isinstance(p, str):
            raise ConfigError(f"layers are named by text, as 'layer1.*', not by {type(p).__name__}")
    compiled = {
        p: re.compile(
            "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in p) + r"\Z"
        )
        for p in patterns
    }
    names = list(names)
    return {p: [n for n in names if rx.match(n)] for p, rx in compiled.items()}
