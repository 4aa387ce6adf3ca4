"""What a method says about a run of ``prune``, wherever the user says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import ConfigError, PlanError
from secateur.graph import Graph
from secateur.methods import registry
from secateur.methods.registry import Method

_PLAIN = Method(criterion="l2")  # what ``prune`` does where neither user nor method says anything
DEPTH = ("layer", "sublayer", "expert", "basis")
_UNITS = ("channel", *DEPTH)  # granularities that remove something for real


def removing(method: Any, amount: float | None = None) -> Method:
    """The method that a user means, which removes units of a trained model.

    Args:
        method: Name, (name, options), ``Method``, or None for plain removal by magnitude.
        amount: Fraction to remove; None leaves the method's own.

    Raises:
        ConfigError: There is no such method, or it is for ``sparsify`` or ``attach``.

    Example:
        >>> removing("flap").criterion
        'fluctuation'
    """
    if method is None:
        return _PLAIN
    found = registry.find(method, amount)
    where = f"method {found.name or 'given'}"
    if found.solver is not None:
        raise ConfigError(f"{where} zeroes weights inside layers: it is for sec.sparsify")
    if found.stage not in ("after", "") or found.granularity not in _UNITS:
        after = (n for n in registry.names("after") if registry.find(n).granularity in _UNITS)
        raise ConfigError(
            f"{where} does not remove units of a trained model: it is for "
            f"{registry.belongs(found)}. Those that do: {', '.join(after)}"
        )
    return found


def settled(method: Method, said: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run: what the user said, else what the method says.

    Args:
        method: From ``removing``.
        said: Criterion, scope, recovery, schedule and arguments of ``plan``; None for nothing said.

    Example:
        >>> settled(removing("flap"), {"scope": "uniform", "recovery": None})["scope"]
        'uniform'
    """
    names = ("criterion", "scope", "recovery", "schedule")
    own = {name: getattr(method, name) for name in names}
    return {**own, **{name: value for name, value in said.items() if value is not None}}


def depth_settings(said: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What a method that leaves out whole blocks is told: what to ignore, and the loss.

    Args:
        said: By the user, None for nothing.
        steps: How many.

    Raises:
        ConfigError: Settings that are about units of width.
    """
    how = {name: value for name, value in said.items() if value is not None}
    other = [name for name in how if name not in ("ignore", "loss", "recovery")]
    if other or steps > 1:
        raise ConfigError(
            f"{', '.join(other) or 'steps'}: a method that leaves out whole blocks goes one step, "
            "and of these settings takes ignore= and loss= only"
        )
    return {name: how[name] for name in ("ignore", "loss") if name in how}


def known_kinds(method: Method, graph: Graph) -> list[str] | None:
    """The kinds of classes that a method takes units from, of those that the model has.

    Raises:
        PlanError: The model has none of the kinds that the method knows.
    """
    there = {c.kind for c in graph.free.values()}
    found = [kind for kind in method.kinds if kind in there]
    if method.kinds and not found:
        raise PlanError(
            f"method {method.name} removes units of kind {' or '.join(method.kinds)}, and this "
            f"model has {', '.join(sorted(there)) or 'only locked ones'}: say kinds="
        )
    return found or None
