"""Taylor, first order, on gates: the squared change of the loss when a unit's output is zeroed."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="class", needs={"gate_sq"}, paper="arXiv:1906.10771", aliases=("gate",))
def taylor_gate(stats: Stats) -> Tensor:
    r"""Score $S_u = E_b[(\partial L / \partial z_u)^2]$ of a gate $z_u = 1$ on the unit's output.

    With the gate after a batch norm this is $(\gamma g_\gamma + \beta g_\beta)^2$. A unit that
    several layers make (a residual stream) has one gate for all of them.

    Args:
        stats: ``gate_sq`` of shape ``(size,)``: mean over batches.

    Returns:
        Scores of shape ``(size,)``, float32, in squared units of the loss.

    Example:
        >>> taylor_gate(Stats("conv1", gate_sq=torch.tensor([4.0])))
        tensor([4.])
    """
    return stats.gate_sq
