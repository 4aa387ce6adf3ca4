"""What would happen if: how much each class can lose, and accuracy against speed-up."""

from secateur.analyse.pareto import pareto
from secateur.analyse.sensitivity import sensitivity

__all__ = ["pareto", "sensitivity"]
