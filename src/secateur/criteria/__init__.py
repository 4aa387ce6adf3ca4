"""Which units matter least: one criterion a file, found by looking."""

from secateur.criteria.registry import Criterion, CriterionLike, criterion, find, names

__all__ = ["Criterion", "CriterionLike", "criterion", "find", "names"]
