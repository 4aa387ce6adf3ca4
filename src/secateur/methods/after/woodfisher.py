"""WoodFisher: optimal brain surgery on the loss, with blocks of the empirical Fisher matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.engine.statistics import Stats
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 22  # of the inverses that are held at once


@method(stage="after", paper="arXiv:2004.14340; arXiv:2203.07259")
def woodfisher(
    amount: float = 0.5, *, block: int = 50, group: int = 1, damping: float = 1e-4
) -> Method:
    """Chooses and updates weights together, from the gradient of every calibration sample's loss.

    The batches need a target or labels; a text is its own. The gradients are those of the model as
    it is when a block's turn comes, and one for each sample is in memory for all weights of the
    block. ``scope="fisher"`` divides the amount among layers. With ``group`` it is oBERT's rule for
    whole groups.

    Args:
        amount: Fraction removed.
        block: How many weights in a row may make up for each other.
        group: Consecutive inputs of an output that go together.
        damping: Added to the Fisher matrix's diagonal.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> sorted(woodfisher(0.5).solver.needs)
        ['gradients']
    """
    if group < 1 or block < 1 or block % group or not damping > 0:
        raise ConfigError(
            f"woodfisher: block={block}, group={group}, damping={damping}: block must be a "
            "multiple of group, both at least 1, and damping positive"
        )
    options = {"block": block, "group": group, "damping": damping}
    return Method(amount, solver=Solver(solve, frozenset({"gradients"}), options=options))


def solve(
    weight: Tensor,
    stats: Stats,
    target: Target,
    *,
    block: int = 50,
    group: int = 1,
    damping: float = 1e-4,
) -> Solved:
    r"""Remove the groups Q of lowest $\frac12 w_Q^\top ([F^{-1}]_{QQ})^{-1} w_Q$.

    For single weights that is $w_i^2 / (2 [F^{-1}]_{ii})$. All removed weights P of a block are
    made up for at once by $\delta w = -[F^{-1}]_{:,P} ([F^{-1}]_{PP})^{-1} w_P$, the minimum of
    $\frac12 \delta w^\top F\, \delta w$; the papers add up the steps of single weights or groups.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gradients``, ``(samples, outputs, inputs)``.
        target: An amount (of the layer), a pattern or a mask.
        block, group, damping: See ``woodfisher``.

    Raises:
        ConfigError: The inputs are no multiple of the group, or there is a pattern beside it.
    """
    rows, columns = weight.shape
    if columns % group or (group > 1 and target.kind == "pattern"):
        raise ConfigError(
            f"{stats.name}: groups of {group} do not fit {columns} inputs or a pattern: choose "
            "another group, or ignore= this layer"
        )
    short = -weight.numel() % block
    w = pad(weight.flatten().double(), (0, short)).view(-1, block)
    g = pad(stats.gradients.flatten(1), (0, short)).view(len(stats.gradients), -1, block)
    at_once = max(1, _ELEMENTS // block**2)
    parts = [slice(i, i + at_once) for i in range(0, len(w), at_once)]
    if target.keep is not None:
        keep = target.keep
    else:
        scores = torch.cat([_scores(w[p], inverse(g[:, p], damping), group) for p in parts])
        scores = scores.flatten()[: weight.numel() // group].view(rows, -1)
        keep = keep_best(scores.sqrt().float(), target).repeat_interleave(group, 1)
    gone = pad(~keep.flatten(), (0, short)).view(-1, block)
    solved = torch.cat([_updated(w[p], inverse(g[:, p], damping), gone[p]) for p in parts])
    solved = solved.flatten()[: weight.numel()].view(rows, columns).float()
    unreached = not bool(stats.gradients.any())
    note = f"{stats.name}: no gradient reached it, its smallest weights went" if unreached else ""
    return Solved(solved, keep, note)


def inverse(gradients: Tensor, damping: float) -> Tensor:
    r"""$F^{-1}$ of $F = \lambda I + \frac1m \sum_k g_k g_k^\top$ for each block, float64.

    With fewer samples than weights by Woodbury's identity
    $F^{-1} = \frac1\lambda (I - G^\top (m \lambda I + G G^\top)^{-1} G)$.

    Args:
        gradients: ``(samples, blocks, weights of a block)``.
        damping: $\lambda$.

    Example:
        >>> inverse(torch.tensor([[[2.0, 1.0]]]), 1.0)  # F = [[5, 2], [2, 2]]
        tensor([[[ 0.3333, -0.3333],
                 [-0.3333,  0.8333]]], dtype=torch.float64)
    """
    g = gradients.double().transpose(0, 1)
    samples, width = g.shape[1:]
    few = samples < width
    inner = g @ g.mT if few else g.mT @ g
    inner.diagonal(dim1=1, dim2=2).add_(samples * damping)
    factor = torch.linalg.cholesky(inner)
    if not few:
        return samples * torch.cholesky_inverse(factor)
    found = -(g.mT @ torch.cholesky_solve(g, factor))
    found.diagonal(dim1=1, dim2=2).add_(1)
    return found / damping


def _scores(w: Tensor, inverses: Tensor, group: int) -> Tensor:
    """The rise of the loss without each group: ``(blocks, groups of a block)``."""
    many = w.shape[1] // group
    own = inverses.view(-1, many, group, many, group).diagonal(dim1=1, dim2=3)
    own, w = own.permute(0, 3, 1, 2), w.view(-1, many, group)
    pulled = w / own[..., 0] if group == 1 else torch.linalg.solve(own, w)
    return (w * pulled).sum(2) / 2


def _updated(w: Tensor, inverses: Tensor, gone: Tensor) -> Tensor:
    """The weights of each block without those that go."""
    both = gone[:, :, None] & gone[:, None, :]
    systems = torch.where(both, inverses, torch.eye(w.shape[1], dtype=w.dtype, device=w.device))
    pulled = torch.linalg.solve(systems, w * gone)
    return (w - (inverses @ pulled[..., None])[..., 0]).masked_fill(gone, 0)
