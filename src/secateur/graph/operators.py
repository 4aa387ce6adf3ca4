"""What torch says of an operator, and what is done with one that has no rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

from secateur.graph.rules import find_rule

_ALIASES = {"detach", "detach_", "alias", "lift_fresh", "lift", "lift_fresh_copy"}
_SILENT = {"device", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_contiguous"}


@dataclass(frozen=True)
class Operator:
    """The facts of an operator's schema; asking torch takes long, so it is asked once."""

    name: str
    full_name: str
    arguments: tuple[str, ...]
    mutates: bool
    random: bool


@cache
def described(func: Any) -> Operator:
    return Operator(
        func.overloadpacket.__name__,
        str(func),
        tuple(a.name for a in func._schema.arguments),
        bool(func._schema.is_mutable),
        torch.Tag.nondeterministic_seeded in func.tags,
    )


class Dispatch:
    """Which operators are looked at, and how those without a rule are taken apart."""

    def __init__(self) -> None:
        self.decompositions = core_aten_decompositions()

    def kind(self, func: Any) -> str:
        """silent (no tensor comes out), alias (the same tensor), compound, or known."""
        name = described(func).name
        if name in _SILENT:
            return "silent"
        if name in _ALIASES:
            return "alias"
        return "known" if find_rule(func) is not None else "compound"

    def decomposed(self, mode: Any, func: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """Run an operator without a rule through core operators that have one."""
        with mode:
            if func in self.decompositions:
                return True, self.decompositions[func](*args, **kwargs)
            result = func.decompose(*args, **kwargs)
        return result is not NotImplemented, result
