"""Fisher of masks: what a unit is worth for each weight, and which units go together best."""

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


def rearranged(stays: Tensor, stats: Stats) -> Tensor:
    r"""Exchange units while $\lVert \sum_{u \in P} g_u \rVert^2$, P what goes, gets smaller.

    $g_u$ holds $\partial L_b / \partial m_u$ of every batch b, so that is the quadratic form of the
    Fisher matrix of the class, whose diagonal the score is. Every unit that stays is put to P once,
    the most expendable first, and of P then that one comes back without which the sum is shortest.

    Args:
        stays: ``(size,)``.
        stats: ``mask_gradients`` of shape ``(batches, size)``.

    Returns:
        A mask of which as many stay.

    Example:
        >>> stats = Stats(mask_gradients=torch.tensor([[1.0, 2.0, -1.9]]))  # 2 and -1.9 cancel
        >>> rearranged(torch.tensor([False, True, False]), stats).tolist()
        [True, False, False]
    """
    vectors = stats.mask_gradients.double().cpu().T
    gone = (~stays).nonzero().flatten()
    for unit in vectors.square().sum(1).argsort(stable=True).tolist():
        if not stays[unit] or not len(gone):
            continue
        tried = torch.cat([gone, torch.tensor([unit])])
        members = vectors[tried]
        lengths = (members.sum(0) - members).square().sum(1)
        # Of equals the new one comes back: nothing is exchanged without a gain.
        back = int(lengths.flip(0).argmin())
        gone = tried[torch.arange(len(tried)) != len(tried) - 1 - back]
    return torch.ones_like(stays).index_fill(0, gone, False)


@criterion(
    level="class",
    needs={"mask_gradients"},
    paper="arXiv:2204.09656",
    normalizer="size",
    exchange=rearranged,
)
def fisher_mask(stats: Stats) -> Tensor:
    r"""Score $E_b[(\partial L_b / \partial m_u)^2]$ of a mask $m_u = 1$, for each weight of a unit.

    With ``scope="global"`` and a budget, units go by what they are worth for what they cost: the
    least loss by the Fisher matrix's diagonal that meets the budget, but for one unit. How many of
    each class go is then kept, and which of them is chosen by the whole matrix of the class.

    Args:
        stats: ``mask_gradients`` of shape ``(batches, size)``.

    Returns:
        Scores of shape ``(size,)``, float32, in squared units of the loss; the normalizer divides.

    Example:
        >>> fisher_mask(Stats("mlp", mask_gradients=torch.tensor([[2.0], [4.0]])))
        tensor([10.])
    """
    return stats.mask_gradients.square().mean(0)
