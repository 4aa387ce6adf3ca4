"""How much where: which classes are ranked against each other."""

from secateur.scope.registry import Scope, find, names, scope

__all__ = ["Scope", "find", "names", "scope"]
