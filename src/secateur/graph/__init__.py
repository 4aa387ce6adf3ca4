"""model -> axes -> unit classes."""

from secateur.graph.classes import Member, UnitClass
from secateur.graph.export import exported
from secateur.graph.graph import Graph
from secateur.graph.rules import rule
from secateur.graph.trace import trace

__all__ = ["Graph", "Member", "UnitClass", "exported", "rule", "trace"]
