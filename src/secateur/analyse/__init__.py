"""What would happen if: sensitivity, accuracy against speed-up, barriers between two networks."""

from secateur.analyse import language
from secateur.analyse.barrier import Barrier, barrier, instability
from secateur.analyse.pareto import pareto
from secateur.analyse.sensitivity import sensitivity

__all__ = ["Barrier", "barrier", "instability", "language", "pareto", "sensitivity"]
