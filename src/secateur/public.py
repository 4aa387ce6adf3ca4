"""The public names, all of them; the package takes them from here when one is first used."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from secateur import criteria, errors, lottery, recovery, report, schedule, scope, zoo
from secateur.analyse import barrier, instability, language, pareto, sensitivity
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, SecateurError
from secateur.gate import Gated, gate
from secateur.graph import Graph, UnitClass, rule, trace
from secateur.measure import Measurement, measure
from secateur.methods.registry import Method
from secateur.methods.registry import names as methods
from secateur.permute import Permuted, permute
from secateur.plan import Plan
from secateur.plan.masking import masked_model as masked
from secateur.plan.select import plan as plan_of_graph
from secateur.plan.store import load, save
from secateur.plan.verify import Verification
from secateur.prune import prune
from secateur.result import Result
from secateur.sparsify import Sparsified, sparsify
from secateur.streaming import SparsifiedFolder, sparsify_folder
from secateur.training.attach import attach

P = ParamSpec("P")
R = TypeVar("R")


def _of_a_graph(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which says what to call where it is given something else than a graph."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = args[0] if args else kwargs.get("graph")
        if not isinstance(given, Graph):
            raise ConfigError(
                f"plan takes a graph, got {type(given).__name__}: call "
                "plan(sec.trace(model, example_inputs), amount=...), or "
                "sec.prune(model, example_inputs, amount=...), which traces the model itself"
            )
        return function(*args, **kwargs)

    return checked


plan = _of_a_graph(plan_of_graph)

__all__ = [
    "Gated",
    "Graph",
    "MaskSet",
    "Measurement",
    "Method",
    "Permuted",
    "Plan",
    "Result",
    "SecateurError",
    "Sparsified",
    "SparsifiedFolder",
    "UnitClass",
    "Verification",
    "attach",
    "barrier",
    "criteria",
    "errors",
    "gate",
    "instability",
    "language",
    "load",
    "lottery",
    "masked",
    "measure",
    "methods",
    "pareto",
    "permute",
    "plan",
    "prune",
    "recovery",
    "report",
    "rule",
    "save",
    "schedule",
    "scope",
    "sensitivity",
    "sparsify",
    "sparsify_folder",
    "trace",
    "zoo",
]
