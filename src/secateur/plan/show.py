"""A plan as a table a person reads."""

from __future__ import annotations

import io
import math
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
