"""Depth: which blocks, or parts of blocks, a search leaves out, as a plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.errors import BudgetError, ConfigError
from secateur.graph import trace
from secateur.plan.gaps import Gap, drop
from secateur.plan.plan import Plan

Enough = Callable[[Sequence[Gap]], bool]


def depth_plan(
    model: nn.Module,
    example_inputs: Any,
    gaps: Sequence[Gap],
    **made_by: Any,
) -> Plan:
    """The plan that makes these gaps; its graph is that of the model with the gaps.

    Example:
        >>> net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
        >>> depth_plan(net, torch.randn(1, 2), [Gap("1")]).apply(net)
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    graph = trace(drop(copy.deepcopy(model), gaps), example_inputs)
    names = ", ".join(
        f"{gap.module}[{', '.join(map(str, gap.experts))}]" if gap.experts else gap.module
        for gap in gaps
    )
    note = (f"dropped: {names}",) if gaps else ()
    return replace(Plan.of(graph, {}, **made_by), dropped=tuple(gaps), edits=(), notes=note)


def enough(
    model: nn.Module,
    candidates: Sequence[Gap],
    amount: float | None,
    keep: Mapping[str, float] | None,
) -> Enough:
    """When so much is left out that the amount or the budget is met.

    Args:
        model: The dense model.
        candidates: What may go.
        amount: Fraction of the candidates, to the nearest number.
        keep: Or ``{"params": fraction that stays}``.

    Raises:
        ConfigError: Neither, both, or another budget.
        BudgetError: The budget cannot be met, or the amount is less than half of one candidate.
    """
    if (amount is None) == (not keep):
        raise ConfigError('give either amount= (of the blocks) or keep= (as {"params": 0.8})')
    if amount is not None:
        if not 0 <= amount < 1:
            raise ConfigError(f"amount={amount!r} must be in [0, 1): it is the fraction removed")
        count = min(round(amount * len(candidates)), len(candidates) - 1)
        if amount > 0 and count < 1:
            raise BudgetError(_nothing_goes(amount, len(candidates)))
        return lambda gaps: len(gaps) >= count
    assert keep is not None
    if set(keep) != {"params"} or not 0 < keep["params"] <= 1:
        raise ConfigError(
            f'keep={dict(keep)}: whole blocks are counted by parameters: keep={{"params": 0.8}}'
        )
    size = {g: g.size(model) for g in candidates}
    total = sum(p.numel() for p in model.parameters())
    wanted = (1 - keep["params"]) * total
    least = min(size.values(), default=0) / 2  # the nearest number, not the next larger
    if sum(size.values()) - min(size.values(), default=0) < wanted - least:
        share = 1 - sum(size.values()) / max(total, 1)
        raise BudgetError(
            f"keep={dict(keep)} cannot be met: without any of the {len(size)} blocks or parts "
            f"{share:.1%} of the parameters would be left. Ask for more"
        )
    return lambda gaps: sum(size[g] for g in gaps) >= wanted - least


def _nothing_goes(amount: float, count: int) -> str:
    said = f"amount={amount} removes none of the {count} blocks, parts or experts that may go"
    if count < 2:
        return f"{said}, of which one must stay: use a method that makes blocks smaller"
    least = math.floor(500 / count + 1) / 1000
    return f"{said}: the least amount that removes one is {least}"
