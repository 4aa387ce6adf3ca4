"""A plan as a table a person reads."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from secateur.plan.plan import Plan

_WIDTH = 100


def table(plan: Plan) -> str:
    """What goes from every class, what that leaves of the parameters, and what had to change.

    Example:
        >>> from secateur.graph import trace
        >>> from secateur.plan import Plan
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> print(table(Plan.of(trace(net, torch.randn(2, 4)), {"0": torch.arange(6)})))
        plan: 58 -> 44 parameter and buffer elements (75.9%), exact
         class  units  stay  go
         0          8     6   2
    """
    before = sum(_elements(s) for s in plan.shapes.values())
    after = sum(_elements(plan.shape(t)) for t in plan.axes)
    kind = "exact" if plan.exact else "statistical: a norm or a mean sees fewer units"
    rows = Table(box=None, padding=(0, 1))
    for title in ("class", "units", "stay", "go"):
        rows.add_column(title, justify="left" if title == "class" else "right", no_wrap=True)
    for name, gone in plan.removed.items():
        size = plan.sizes[name]
        rows.add_row(name, str(size), str(size - gone), str(gone))
    text = io.StringIO()
    if plan.keep:
        Console(width=_WIDTH, file=text, color_system=None).print(rows)
    share = f"{after / before:.1%}" if before else "no elements"
    lines = [f"plan: {before} -> {after} parameter and buffer elements ({share}), {kind}"]
    lines += [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
    if plan.edits:
        set_ = sum(e.call is None for e in plan.edits)
        lines.append(f"attributes set: {set_}, arguments of calls mended: {len(plan.edits) - set_}")
    lines += [f"note: {n}" for n in plan.notes]
    return "\n".join(lines)


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def narrow(plan: Plan) -> tuple[str, ...]:
    """A note where hardly anything is left of a layer: training seldom brings that back."""
    found = [
        f"{name} keeps {size - gone} of {size}"
        for name, gone in plan.removed.items()
        if (size := plan.sizes[name]) >= 8 and (size - gone) * 10 < size
    ]
    if not found:
        return ()
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"very narrow: {', '.join(found[:3])}{more}; what was taken from so few units is seldom "
        "brought back by training (min_width= and max_ratio= set a floor)",
    )


def unmoved(plan: Plan, amount: float | None, keep: Mapping[str, float] | None) -> str:
    """A note where something was to go and nothing does; empty otherwise."""
    asked = dict(keep) if keep else {"amount": amount or 0.0}
    wanted = any(value < 1 for value in asked.values()) if keep else bool(amount)
    if not wanted or plan.touched or plan.dropped:
        return ""
    target = ", ".join(f"{name}={value:g}" for name, value in asked.items())
    largest = max((c.size for c in plan.graph.free.values()), default=0) if plan.graph else 0
    return (
        f"nothing was removed: {'keep of ' if keep else ''}{target} comes to no whole unit of "
        f"what may go (the largest class has {largest} units); ask for more to go"
    )
