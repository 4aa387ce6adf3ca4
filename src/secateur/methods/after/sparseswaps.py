"""SparseSwaps: exchange a removed weight for a kept one while the layer's error falls."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.engine.gram import problem
from secateur.engine.statistics import Stats
from secateur.engine.target import ROWWISE, Solved, Solver, Target, keep_best
from secateur.methods.registry import Method, method

_ELEMENTS = 1 << 24  # of the table of all pairs, for the rows that are worked on at once


@method(stage="after", paper="arXiv:2512.10922")
def sparseswaps(amount: float = 0.5, *, swaps: int = 50, damping: float = 0.0) -> Method:
    """Starts from Wanda's mask or a given one; weights are not updated.

    Args:
        amount: Fraction removed.
        swaps: At most so many a row.
        damping: Added to the Gram matrix's diagonal, relative to its mean.

    Example:
        >>> sorted(sparseswaps(0.5).solver.needs)
        ['gram']
    """
    options = {"swaps": swaps, "damping": damping}
    return Method(
        amount, solver=Solver(solve, frozenset({"gram"}), rowwise=ROWWISE, options=options)
    )


def solve(
    weight: Tensor, stats: Stats, target: Target, *, swaps: int = 100, damping: float = 0.0
) -> Solved:
    r"""Refine a mask by the best swap of each row, again and again; weights are not updated.

    With r the removed part of a row, its error is $r G r^\top$. Bringing back p and removing q
    changes it by $-2 w_p (Gr)_p + 2 w_q (Gr)_q + w_p^2 G_{pp} + w_q^2 G_{qq} - 2 w_p w_q G_{pq}$.
    How many weights of a row stay, and of a group of a pattern, never changes.

    Args:
        weight: ``(outputs, inputs)``.
        stats: With ``gram``.
        target: A mask to start from; without one, Wanda's.
        swaps: At most so many a row.
        damping: Added to the diagonal, relative to its mean.
    """
    gram = stats.gram.float()
    note = ""
    if damping:
        here = problem(weight, stats, damping)
        gram, note = here.gram, here.note
    scores = weight.abs().float() * gram.diagonal().sqrt()
    keep = keep_best(scores, target, per="row")
    group = target.pattern[1] if target.pattern is not None else 0
    keep = refine(weight.float(), gram, keep, swaps, group)
    return Solved(weight * keep, keep, note)


def refine(weight: Tensor, gram: Tensor, keep: Tensor, swaps: int, group: int = 0) -> Tensor:
    """The mask after the swaps; ``group``: swap within groups of so many inputs only."""
    keep = keep.clone()
    active = torch.arange(len(keep), device=keep.device)
    pull = (weight * ~keep) @ gram
    diagonal = gram.diagonal()
    for _ in range(swaps):
        best = _best_in_groups if group else _best_anywhere
        gain, back, out = best(weight[active], gram, diagonal, pull[active], keep[active], group)
        better = gain < -1e-7 * (pull[active] * weight[active] * ~keep[active]).sum(1).abs()
        if not bool(better.any()):
            break
        active, back, out = active[better], back[better], out[better]
        keep[active, back] = True
        keep[active, out] = False
        pull[active] += (
            weight[active, out, None] * gram[out] - weight[active, back, None] * gram[back]
        )
    return keep


def _changes(weight: Tensor, diagonal: Tensor, pull: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """What bringing back and what removing changes, each by itself; infinite where not allowed."""
    square = weight.square() * diagonal
    infinite = torch.full_like(square, torch.inf)
    back = torch.where(keep, infinite, square - 2 * weight * pull)
    return back, torch.where(keep, square + 2 * weight * pull, infinite)


def _best_anywhere(
    weight: Tensor, gram: Tensor, diagonal: Tensor, pull: Tensor, keep: Tensor, _: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pair of each row: among all pairs of the likeliest that bring back and remove."""
    back, out = _changes(weight, diagonal, pull, keep)
    rows, n = weight.shape
    few = min(n, max(32, n // 16))
    some_back, some_out = (t.topk(few, dim=1, largest=False) for t in (back, out))
    gains, firsts, seconds = [], [], []
    at_once = max(1, _ELEMENTS // few**2)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        p, q = some_back.indices[part], some_out.indices[part]
        table = some_back.values[part][:, :, None] + some_out.values[part][:, None, :]
        w = weight[part]
        table -= (
            2
            * w.gather(1, p)[:, :, None]
            * w.gather(1, q)[:, None, :]
            * gram[p[:, :, None], q[:, None, :]]
        )
        gain, where = table.nan_to_num(torch.inf, torch.inf, torch.inf).flatten(1).min(1)
        gains.append(gain)
        firsts.append(p.gather(1, (where // few)[:, None])[:, 0])
        seconds.append(q.gather(1, (where % few)[:, None])[:, 0])
    return torch.cat(gains), torch.cat(firsts), torch.cat(seconds)


def _best_in_groups(
    weight: Tensor, gram: Tensor, diagonal: Tensor, pull: Tensor, keep: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pair of each row, both of one group."""
    back, out = _changes(weight, diagonal, pull, keep)
    rows, n = weight.shape
    blocks = torch.stack([gram[i : i + group, i : i + group] for i in range(0, n, group)])
    w = weight.view(rows, -1, group)
    table = back.view(rows, -1, group, 1) + out.view(rows, -1, 1, group)
    table = table - 2 * w[..., :, None] * w[..., None, :] * blocks
    gain, where = table.nan_to_num(torch.inf, torch.inf, torch.inf).flatten(1).min(1)
    start = where // group**2 * group
    return gain, start + where % group**2 // group, start + where % group
