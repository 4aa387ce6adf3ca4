"""SOSP: the change of the loss to second order, what happens to all other units included."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="class", needs={"gate", "gate_curvature"}, paper="arXiv:2110.11395")
def sosp(stats: Stats) -> Tensor:
    r"""Score $S_u = |\partial_u L| + \tfrac12 |\sum_v \partial_u \partial_v L|$, gates $z = 1$.

    A gate stands before all of a unit, so $\partial_u L = \theta_u^\top g$ and
    $\partial_u \partial_v L = \theta_u^\top H \theta_v$ where the network is linear in the unit's
    weights: the sum over all units is one product of the Hessian with a vector.

    Args:
        stats: ``gate`` and ``gate_curvature`` of shape ``(size,)``.

    Returns:
        Scores of shape ``(size,)``, float32, in units of the loss.

    Example:
        >>> sosp(Stats(gate=torch.tensor([-1.0]), gate_curvature=torch.tensor([4.0])))
        tensor([3.])
    """
    return stats.gate.abs() + 0.5 * stats.gate_curvature.abs()
