"""How each operator carries axes from its inputs to its outputs, one file a family.

A rule is a function from an ``Op`` to the axes of its output (or outputs), registered by
``@rule(torch.ops.aten.cat)``. It unifies what must be the same axis, and returns None for a form
that it cannot express, which locks the operator's axes. ``secateur.graph.rule`` is the same
decorator for custom operators: ``@rule(torch.ops.mylib.myop)``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from secateur.graph.capture import Op

Rule = Callable[["Op"], Any]
_RULES: dict[Any, Rule] = {}


class _Aten:
    """``torch.ops.aten``, with None for operators that this release of torch does not have."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.aten, name, None)


aten: Any = _Aten()


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the given operators (packets or overloads).

    Example:
        >>> @rule(torch.ops.aten.relu)
        ... def relu(op):
        ...     return op.axes(op.arg("self"))
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator is not None:
                _RULES[operator] = function
        find_rule.cache_clear()
        return function

    return register


@cache
def find_rule(func: Any) -> Rule | None:
    """The rule of an overload: its own, its packet's, its functional twin's, or pointwise."""
    _load()
    packet = func.overloadpacket
    for key in (func, packet, _functional(packet)):
        if key in _RULES:
            return _RULES[key]
    twin = _functional(packet)
    tags = set(func.tags) | set(getattr(getattr(twin, "default", None), "tags", ()))
    return _RULES["pointwise"] if torch.Tag.pointwise in tags else None


def _functional(packet: Any) -> Any:
    """``aten.relu`` for ``aten.relu_``."""
    name = packet.__name__
    if not name.endswith("_") or name.startswith("__"):
        return packet
    namespace = getattr(torch.ops, packet._qualified_op_name.split("::")[0])
    return getattr(namespace, name.rstrip("_"), packet)


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
