"""The public names, all of them; the package takes them from here when one is first used."""

from secateur import criteria, errors, lottery, recovery, report, schedule, scope, zoo
from secateur.analyse import barrier, instability, language, pareto, sensitivity
from secateur.engine.masks import MaskSet
from secateur.errors import SecateurError
from secateur.gate import Gated, gate
from secateur.graph import Graph, UnitClass, rule, trace
from secateur.measure import Measurement, measure
from secateur.methods.registry import Method
from secateur.methods.registry import names as methods
from secateur.permute import Permuted, permute
from secateur.plan import Plan
from secateur.plan.masking import masked_model as masked
from secateur.plan.select import plan
from secateur.plan.store import load, save
from secateur.plan.verify import Verification
from secateur.prune import prune
from secateur.result import Result
from secateur.sparsify import Sparsified, sparsify
from secateur.streaming import SparsifiedFolder, sparsify_folder
from secateur.training.attach import attach

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
