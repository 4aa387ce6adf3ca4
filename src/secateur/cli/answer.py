"""What a command gives back: the same thing for people and for programs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

_WIDTH = 110  # columns where the output is no terminal


@dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes:
        data: For ``--json``: dicts, lists, text, numbers, booleans and None.
        show: For the terminal: text, or anything that rich prints.
    """

    data: Any
    show: Any


def write(answer: Answer, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Write an answer to standard output: one JSON document, or text."""
    stream = stream or sys.stdout
    if as_json:
        json.dump(plain(answer.data), stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
    elif isinstance(answer.show, str):
        stream.write(answer.show.rstrip("\n") + "\n")
    else:
        from rich.console import Console

        Console(file=stream, width=None if stream.isatty() else _WIDTH).print(answer.show)
    stream.flush()


def started(work: str, options: argparse.Namespace) -> None:
    """Say on standard error that long work begins, unless the user wants it quiet."""
    if not options.quiet:
        sys.stderr.write(f"{work} ...\n")
        sys.stderr.flush()


def plain(value: Any) -> Any:
    """What JSON can hold: a number that is not finite becomes null, a tuple a list.

    Example:
        >>> plain({"loss": float("nan"), "shape": (1, 2)})
        {'loss': None, 'shape': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    return value
