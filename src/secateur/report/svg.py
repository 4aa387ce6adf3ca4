"""Small pieces of SVG: scales, ticks, a frame with axes, and marks; colours are CSS classes.

Hand-made rather than drawn by a plotting library so that a figure follows the reader's light or
dark scheme, scales its text on a phone, and needs no fonts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from secateur.report.units import plain


@dataclass(frozen=True)
class Scale:
    """Maps values between ``low`` and ``high`` to pixels between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``; on a log scale what is below ``low`` is drawn there."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values inside the scale: decades if log, else steps of 1, 2, 2.5 or 5."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, math.ceil((last - first + 1) / about))
            return [10.0**power for power in range(first, last + 1, every)]
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def spanning(values: Iterable[float], start: float, end: float, margin: float = 0.06) -> Scale:
    """Make a linear scale over the values with some room on either side."""
    known = list(values)
    low, high = min(known), max(known)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low - room, high + room, start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def number(value: float) -> str:
    """Show a tick's value without noise: 0.1, 250, 5k."""
    if abs(value) < 1e-12:
        return "0"
    for power, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.4g}{prefix}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """Write a label; the content is escaped."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
        f"{escape(plain(content))}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Draw a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def path(
    points: Sequence[tuple[float, float]], css: str, hint: str = "", close: bool = False
) -> str:
    """Draw a line through pixels; ``hint`` is shown when pointed at."""
    places = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{places}{"Z" if close else ""}" class="{css}">{tip(hint)}</path>'


def circle(x: float, y: float, radius: float, css: str, hint: str = "") -> str:
    """Draw a dot; ``hint`` is shown when pointed at."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{css}">{tip(hint)}</circle>'


def bar(x: float, y: float, width: float, height: float, css: str, hint: str = "") -> str:
    """Draw a filled rectangle; ``hint`` is shown when pointed at."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'class="{css}">{tip(hint)}</rect>'
    )


def tip(hint: str) -> str:
    """Give a mark its native tooltip; nothing when there is no hint."""
    return f"<title>{escape(plain(hint))}</title>" if hint else ""


def frame(
    x: Scale,
    y: Scale,
    x_name: str,
    y_name: str,
    x_show: Callable[[float], str] = number,
    y_show: Callable[[float], str] = number,
    x_ticks: Sequence[float] | None = None,
) -> list[str]:
    """Draw the grid, the tick labels and the names of two axes (``y.start`` is the bottom)."""
    parts = []
    for value in y.ticks():
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(text(x.start - 8, y(value) + 4, y_show(value), "tick", "end"))
    for value in x.ticks() if x_ticks is None else x_ticks:
        parts.append(line(x(value), y.start, x(value), y.start + 4, "axis"))
        parts.append(text(x(value), y.start + 19, x_show(value), "tick", "middle"))
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(text((x.start + x.end) / 2, y.start + 40, x_name, "name", "middle"))
    if y_name:  # above the axis and level: easier to read than turned text
        parts.append(text(4, y.end - 14, y_name, "name"))
    return parts


def drawing(width: int, height: int, description: str, parts: Iterable[str]) -> str:
    """Wrap the parts as one picture that a screen reader announces by its description."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(plain(description))}">'
        f"{''.join(parts)}</svg>"
    )
