"""How a budget of measured latency is met, on a machine that has other things to do as well."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import get_clock_info, perf_counter, process_time

from torch import nn

from secateur.errors import BudgetError
from secateur.graph import Graph
from secateur.measure import Measurement
from secateur.measure.calling import call, device_of, evaluating
from secateur.measure.latency import Speedup, spread, time_interleaved

log = logging.getLogger(__name__)
TOLERANCE = 0.02
_PROBES = 12  # batches of measurements in one search
_FINE = get_clock_info("process_time").resolution < 1e-5  # some systems count in ticks
_SECONDS = 0.3  # for one batch of measurements, where fewer do not say it surely enough
_TWICE = 2  # what is decided on has been measured at two moments


@dataclass
class Clock:
    """Times models against the dense one, and finds how many bundles must go.

    On a CPU it is the processor time of this process that counts, dense and pruned in turn:
    the time on the wall would be that of whatever else runs. Elsewhere it is the wall clock.

    Attributes:
        graph: Of the dense model, which runs on its example inputs.
        own: The user's: seconds of a forward of a model.
        note: What the last search measured.
    """

    graph: Graph
    own: Callable[[nn.Module], float] | None = None
    note: str = ""

    def ratios(self, model: nn.Module) -> list[float]:
        """Times of a model over those of the dense one."""
        if self.own is not None:
            return [self.own(model) / self.own(self.graph.model)]
        both, device = (self.graph.model, model), device_of(model)
        clock = process_time if device.type == "cpu" and _FINE else perf_counter
        found: list[float] = []
        spent = 0.0
        with evaluating(*both):
            calls = [partial(call, m, self.graph.example_inputs) for m in both]
            while not found or (spent < _SECONDS and spread(found) > _sure(median(found))):
                dense, this = time_interleaved(calls, device=device, clock=clock)
                found += [b / a for a, b in zip(dense, this, strict=True)]
                spent += sum(dense) + sum(this)
        return found

    def search(
        self,
        first: int,
        last: int,
        fraction: float,
        made: Callable[[int], nn.Module],
        *,
        dense: bool,
    ) -> int:
        """The fewest bundles whose removal is measured to be fast enough.

        The time is taken to fall as more go: the nearest curve that never rises is laid through
        all that was measured, and the next measurement is where it crosses the fraction. So one
        bad measurement moves the crossing a little and is corrected by its neighbours. What is
        chosen, and the neighbour that was too slow, have been measured at two moments.

        Args:
            first: So many go anyway.
            last: So many can go.
            fraction: Of the dense model's time.
            made: The model without so many bundles.
            dense: Whether without the first it is the dense model.

        Raises:
            BudgetError: Even with all of them gone it is not fast enough.
        """
        found: dict[int, list[float]] = {first: [1.0]} if dense else {}  # beside itself
        turns = {first: _TWICE} if dense else {}

        def probe(count: int) -> None:
            found.setdefault(count, []).extend(self.ratios(made(count)))
            turns[count] = turns.get(count, 0) + 1

        for count in {first, last} - found.keys():
            probe(count)
        for _ in range(_PROBES):
            due = _due(found, turns, first, fraction)
            if due is None:
                break
            probe(due)
        at, curve = _crossing(found, first, fraction)
        counts = sorted(found)
        if at == len(counts):
            raise BudgetError(
                f"keep={{'latency': {fraction:g}}} cannot be met: with every class at its minimum "
                f"width a forward still takes {curve[-1]:.1%} of the dense model's time. "
                "Ask for more, lower min_width or raise max_ratio, or give example inputs of a "
                "larger batch: of a small one most of the time goes by with operators of any width"
            )
        self.note = _said(found[counts[at]], fraction, own=self.own is not None)
        return counts[at]


def _due(
    found: dict[int, list[float]], turns: dict[int, int], first: int, fraction: float
) -> int | None:
    """What to measure next, or None when all is known."""
    counts = sorted(found)
    at, curve = _crossing(found, first, fraction)
    if at == len(counts):  # nothing is fast enough
        return counts[-1] if turns[counts[-1]] < _TWICE else None
    high, low = counts[at], counts[at - 1] if at else counts[at]
    near = max(_sure(fraction), spread(found[high]))  # what cannot be told from the fraction
    if high == first or curve[at] >= fraction - near:
        return high if turns[high] < _TWICE else None
    if high - low <= 1:
        return min((c for c in (high, low) if turns[c] < _TWICE), default=None)
    share = (curve[at - 1] - fraction) / (curve[at - 1] - curve[at])
    margin = max((high - low) // 8, 1)  # what crosses close to one end may be far from a line
    return min(max(low + round(share * (high - low)), low + margin), high - margin)


def _crossing(
    found: dict[int, list[float]], first: int, fraction: float
) -> tuple[int, list[float]]:
    """Place of the fewest that are fast enough among all that were measured, and the curve."""
    counts = sorted(found)
    curve = falling([median(found[c]) for c in counts], [len(found[c]) for c in counts])
    fast = (
        i
        for i, (c, v) in enumerate(zip(counts, curve, strict=True))
        if c >= first and v <= fraction * (1 + TOLERANCE)
    )
    return next(fast, len(counts)), curve


def falling(values: Iterable[float], weights: Iterable[float]) -> list[float]:
    """The sequence nearest in weighted squares that never rises (pool adjacent violators).

    Example:
        >>> falling([1.0, 0.4, 0.6, 0.2], [1, 1, 1, 1])
        [1.0, 0.5, 0.5, 0.2]
    """
    pools: list[tuple[float, float, int]] = []
    for pool in ((v, w, 1) for v, w in zip(values, weights, strict=True)):
        while pools and pools[-1][0] < pool[0]:
            before = pools.pop()
            weight = before[1] + pool[1]
            mean = (before[0] * before[1] + pool[0] * pool[1]) / weight
            pool = (mean, weight, before[2] + pool[2])
        pools.append(pool)
    return [value for value, _, count in pools for _ in range(count)]


def _said(ratios: Sequence[float], fraction: float, *, own: bool) -> str:
    """What was measured of the model that was chosen, and how sure that is."""
    how = "by the given clock" if own else "while planning, dense and pruned in turn"
    said = f"latency={fraction:g} was asked, {median(ratios):.2f} measured {how}"
    if len(ratios) < 2:
        return said
    sure = spread(ratios)
    said = f"{said}, known to {sure:.2f}"
    if sure <= 2 * _sure(fraction):
        return said
    return f"{said} only: plan on a quiet machine or with fewer threads"


def _sure(ratio: float) -> float:
    """To what a ratio should be known."""
    return TOLERANCE * ratio


def kept_to(keep: Mapping[str, float], cost: Measurement | None) -> str:
    """Whether a budget of latency is met by what a report measured; nothing without either."""
    if "latency" not in keep or cost is None or cost.latency is None or cost.against is None:
        return ""
    gain, fraction = cost.against.speedup, keep["latency"]
    if gain is None:
        return ""
    said = judged(fraction, gain, cost.latency.repeats)
    if not said.endswith(", met"):
        log.warning("%s", said)
    return said


def judged(fraction: float, gain: Speedup, repeats: int) -> str:
    """Whether what the report measured is within a budget of latency.

    Example:
        >>> judged(0.6, Speedup(1.75, 1.7, 1.8), 20)
        'budget latency=0.6: measured 0.57, met'
    """
    took, sure = 1 / gain.ratio, (1 / gain.p10 - 1 / gain.p90) / math.sqrt(repeats)
    limit = fraction * (1 + TOLERANCE)
    said = f"budget latency={fraction:g}: measured {took:.2f}"
    if abs(took - limit) < sure - TOLERANCE * fraction:
        return (
            f"{said} on the wall clock, known to {sure:.2f} only: whether it is met is not "
            "conclusive; measure with more repeats, on a quiet machine or with fewer threads"
        )
    return f"{said}, {'met' if took <= limit else 'not met'}"
