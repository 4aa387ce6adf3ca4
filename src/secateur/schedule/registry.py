"""What a schedule is, and where it is found by name."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from secateur import schedule as members
from secateur.errors import ConfigError
from secateur.names import unknown

Curve = Callable[[float, float, float], float]
_REGISTRY: dict[str, Curve] = {}


@dataclass(frozen=True)
class Schedule:
    """The amount removed as a function of progress.

    Attributes:
        name: As the user writes it.
        curve: From (progress in [0, 1], initial, final) to the amount.
        final: Amount at the end, in [0, 1).
        initial: Amount at the start.
        start: Progress at which it leaves ``initial``.
        end: Progress at which it reaches ``final``.
    """

    name: str
    curve: Curve
    final: float
    initial: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """The amount that should be gone at a point of the process.

        Args:
            progress: Fraction of the process that is over; before ``start`` it is ``initial``,
                after ``end`` it is ``final``, exactly.

        Example:
            >>> find("linear", 0.8).at(0.5)
            0.4
        """
        if progress < self.start:
            return self.initial
        if progress >= self.end:
            return self.final
        done = (progress - self.start) / (self.end - self.start)
        return self.curve(done, self.initial, self.final)

    def amounts(self, steps: int) -> list[float]:
        """The amounts after each of so many equal steps; the last is ``final``.

        Example:
            >>> find("linear", 0.8).amounts(2)
            [0.4, 0.8]
        """
        if steps < 1:
            raise ConfigError(f"steps={steps}: a schedule needs at least one step")
        return [self.at(k / steps) for k in range(1, steps)] + [self.final]


def schedule(name: str) -> Callable[[Curve], Curve]:
    """Register a curve, a function of (progress, initial, final), as a schedule.

    Example:
        >>> @schedule("late")
        ... def late(progress, initial, final):
        ...     return initial if progress < 0.9 else final
    """

    def register(curve: Curve) -> Curve:
        _REGISTRY[name] = curve
        return curve

    return register


def names() -> list[str]:
    """List the schedules.

    Example:
        >>> "cubic" in names()
        True
    """
    _load()
    return sorted(_REGISTRY)


def find(
    which: Any, final: float, *, initial: float = 0.0, start: float = 0.0, end: float = 1.0
) -> Schedule:
    """The schedule that a user means.

    Args:
        which: A name, a ``Schedule`` (given back with this ``final``), or a function of
            (progress, initial, final).
        final: Amount at the end, in [0, 1).
        initial: Amount at the start, in [0, final].
        start: Progress at which it begins, in [0, end).
        end: Progress at which it ends, in (start, 1].

    Raises:
        ConfigError: There is no such schedule, or a number is out of range.

    Example:
        >>> round(find("cubic", 0.9).at(0.1), 4)
        0.2439
    """
    _load()
    if not (isinstance(final, int | float) and 0 <= final < 1):
        raise ConfigError(f"amount={final!r}: it is the fraction removed and must be in [0, 1)")
    if not all(map(math.isfinite, (final, initial, start, end))) or not (
        0 <= initial <= final < 1 and 0 <= start < end <= 1
    ):
        raise ConfigError(
            f"schedule: initial={initial}, final={final}, start={start}, end={end} must satisfy "
            "0 <= initial <= final < 1 and 0 <= start < end <= 1"
        )
    if isinstance(which, Schedule):
        return Schedule(which.name, which.curve, final, initial, start, end)
    if callable(which):
        return Schedule(getattr(which, "__name__", "curve"), which, final, initial, start, end)
    if not isinstance(which, str):
        raise ConfigError(
            f"schedule={which!r} must be a name or a function of (progress, initial, final); how "
            "many steps it has is said by steps="
        )
    if which not in _REGISTRY:
        raise ConfigError(unknown("schedule", which, _REGISTRY))
    return Schedule(which, _REGISTRY[which], final, initial, start, end)


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(members.__path__):
        importlib.import_module(f"{members.__name__}.{module.name}")
