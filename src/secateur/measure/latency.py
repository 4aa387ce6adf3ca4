"""Time of a forward: warm-up, median and spread, with the threads stated."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

from secateur.errors import ConfigError


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward: the median and the 10th and 90th percentile of ``repeats``."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    warmup: int
    threads: int
    device: str


@dataclass(frozen=True)
class Speedup:
    """How many times faster: the ratio of medians, and p10 and p90 of the pairs' ratios."""

    ratio: float
    p10: float
    p90: float


def time_interleaved(
    calls: Sequence[Callable[[], object]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = perf_counter,
) -> list[list[float]]:
    """Time several calls in turn (A B A B ...), so that a change of load meets all of them alike.

    Args:
        calls: what to time; each is called without arguments.
        repeats: rounds that are timed, at least 2.
        warmup: rounds before, which are not.
        device: an accelerator is synchronised before each reading of the clock.
        clock: of seconds; default: that on the wall.

    Returns:
        Seconds, one list of ``repeats`` for each call.
    """
    if repeats < 2 or warmup < 0:
        raise ConfigError(
            f"repeats={repeats}, warmup={warmup}: a spread needs repeats >= 2 and warmup >= 0"
        )
    on_cpu = torch.device(device).type == "cpu"
    seconds: list[list[float]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of one call would be charged to it
    try:
        for turn in range(warmup + repeats):
            for index, forward in enumerate(calls):
                if not on_cpu:
                    torch.accelerator.synchronize()
                start = clock()
                result = forward()
                if not on_cpu:
                    torch.accelerator.synchronize()
                stop = clock()
                del result
                if turn >= warmup:
                    seconds[index].append(stop - start)
    finally:
        if collecting:
            gc.enable()
    return seconds


def summarize(seconds: Sequence[float], warmup: int, device: torch.device | str) -> Latency:
    """Median and percentiles of samples in seconds, as milliseconds."""
    low, high = _p10_p90(seconds)
    return Latency(
        median_ms=1e3 * median(seconds),
        p10_ms=1e3 * low,
        p90_ms=1e3 * high,
        repeats=len(seconds),
        warmup=warmup,
        threads=torch.get_num_threads(),
        device=str(device),
    )


def speedup(dense: Sequence[float], pruned: Sequence[float]) -> Speedup:
    """Ratio of medians of interleaved samples; the spread is that of the ratio within each pair."""
    low, high = _p10_p90([a / b for a, b in zip(dense, pruned, strict=True)])
    return Speedup(ratio=median(dense) / median(pruned), p10=low, p90=high)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use ``count`` CPU threads for a while; ``None`` leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None and count < 1:
        raise ConfigError(f"threads={count}: give at least 1, or None for torch's current number")
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def spread(samples: Sequence[float]) -> float:
    """To what the median of samples is known: two standard errors, from p10 and p90.

    2 · 1.25 σ / √n, with p90 - p10 = 2.56 σ; 0 for a single sample, which says nothing of it.

    Example:
        >>> spread([1.0, 1.0, 1.0])
        0.0
    """
    if len(samples) < 2:
        return 0.0
    low, high = _p10_p90(samples)
    return (high - low) / math.sqrt(len(samples))


def _p10_p90(samples: Sequence[float]) -> tuple[float, float]:
    tenths = quantiles(samples, n=10, method="inclusive")
    return tenths[0], tenths[-1]
