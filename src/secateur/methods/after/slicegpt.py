"""SliceGPT: turn each block to its principal components, and cut off the weakest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from secateur.errors import BudgetError, ConfigError
from secateur.methods.bases import Bases, with_bases
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.bases import neutral
from secateur.plan.plan import Plan

_ROUND = 8  # widths are multiples of it, as the authors'


@method(stage="after", paper="arXiv:2401.15024")
def slicegpt(amount: float = 0.25) -> Method:
    """The residual stream gets narrower in all blocks alike; heads and neurons stay.

    Each block has one basis, and a matrix before it leads there from the basis of the block before
    (the paper has a second one between attention and MLP, except where these are parallel): the
    principal components of what its norms are given and of what it gives, behind blocks that are
    sliced already. The result is no stock model: ``sec.load`` loads it.

    Args:
        amount: Fraction of the width removed, to a multiple of 8.

    Example:
        >>> slicegpt(0.25).granularity
        'basis'
    """
    return Method(amount, granularity="basis", search=sliced)


def sliced(
    depth: Depth, example_inputs: Any, amount: float | None, keep: Mapping[str, float] | None
) -> Plan:
    r"""The plan that keeps the first components of every block, on the rotated model.

    Norms then see $d'$ of $d$ components, so their outputs are multiplied by $\sqrt{d / d'}$: they
    divide by the root of the mean square that the dense width would give.

    Args:
        depth: Model and batches.
        example_inputs: To trace by.
        amount: Fraction of the width that goes.
        keep: Or ``{"params": fraction}`` of the dense model's parameters, shortcuts included.

    Returns:
        A plan whose ``graph.model`` is the rotated model.

    Raises:
        BudgetError: No width meets the budget.
        ConfigError: Another budget than parameters.
    """
    if keep and set(keep) != {"params"}:
        raise ConfigError(
            f"keep={dict(keep)}: a narrower residual stream is counted by parameters: "
            'keep={"params": 0.8}'
        )
    found: list[int] = []

    def left_of(before: Bases) -> int:
        width = before.classes[0].size
        step = _ROUND if width >= 4 * _ROUND else 1
        if amount is not None:
            found.append(max(int((1 - amount) * width) // step * step, step) if amount else width)
        else:
            found.append(_fitting(depth, before, width, step, (keep or {}).get("params", 1.0)))
        return found[0]

    here = with_bases(depth, example_inputs, left_of)
    width, left = here.classes[0].size, found[0]
    model: Any = here.graph.model
    for name in (name for names in here.norms.values() for name in names):
        neutral(model.get_submodule(name), (width / left) ** 0.5)
    lost = [float(e[left:].sum() / e.sum()) for e in here.energy.values()]
    turned = len(here.classes) - 1
    note = (
        f"turned: {turned} blocks have a matrix before them; of the width {width} there "
        f"remain {left}, without {min(lost):.1%} to {max(lost):.1%} of the mean square"
    )
    return replace(_plan(here, width, left), dropped=here.gaps, notes=(note,))


def _plan(here: Bases, width: int, left: int) -> Plan:
    return Plan.of(here.graph, {c.name: torch.arange(width) < left for c in here.classes})


def _fitting(depth: Depth, here: Bases, width: int, step: int, share: float) -> int:
    """The largest width with so few parameters."""
    wanted = share * sum(p.numel() for p in depth.model.parameters())
    names = [n for n, _ in here.graph.model.named_parameters()]  # type: ignore[union-attr]
    for left in range(width // step * step, 0, -step):
        plan = _plan(here, width, left)
        if sum(torch.Size(plan.shape(n)).numel() for n in names) <= wanted:
            return left
    raise BudgetError(f'keep={{"params": {share}}} cannot be met by a narrower residual stream')
