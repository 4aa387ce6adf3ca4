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

from secateur.errors import ConfigError

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
    """Register a function as the rule of the given operators.

    The function gets an ``Op``: ``op.arg(name)`` is an argument by its name in the operator's
    schema, ``op.axes(tensor)`` are the axes of a tensor, one expression a dimension. It says which
    axes are the same by ``secateur.graph.axes.unify``, which must stay by ``op.lock``, which
    parameters are summed over by ``op.contracts``, over how many positions a statistic is taken by
    ``op.statistical``; and returns the axes of the output, or a list of these for several outputs,
    or None to leave everything that meets there whole.

    Args:
        operators: ``torch.ops.mylib.myop``, one of its overloads, or what ``custom_op`` made.

    Raises:
        ConfigError: Something else than an operator, or than a function as its rule.

    Example:
        >>> @rule(torch.ops.aten.relu)
        ... def relu(op):
        ...     return op.axes(op.arg("self"))
    """
    keys = [_operator(o) for o in operators if o is not None]
    if not operators:
        raise ConfigError("rule() is of no operator: write @rule(torch.ops.mylib.myop)")

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise ConfigError(f"a rule is a function of an op, got {function!r}")
        _RULES.update(dict.fromkeys(keys, function))
        find_rule.cache_clear()
        return function

    return register


def _operator(given: Any) -> Any:
    """What calls of the operator are known by, which is not what ``custom_op`` returns."""
    made = getattr(given, "_opoverload", None)
    if made is None and given != "pointwise" and not isinstance(given, _KINDS):
        raise ConfigError(
            f"rule takes operators, as torch.ops.mylib.myop, got {given!r}: write "
            "@rule(torch.ops.mylib.myop) over the rule"
        )
    return given if made is None else made.overloadpacket


_KINDS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


class RuleError(Exception):
    """A rule cannot say what it is asked, or says what cannot be; ``trace`` tells the user."""


def told(function: Rule, op: Op) -> Any:
    """What a rule says of an operator.

    Raises:
        RuleError: The rule raised.
    """
    try:
        return function(op)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise RuleError(
            f"the rule of {op.func} ({function.__module__}.{name}) raised "
            f"{type(error).__name__}: {error}. The operator was given {', '.join(op.given)}"
        ) from error


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
