"""Numbers and names as a person reads them; used alike by the page, the terminal and the card."""

import math
import re

from secateur.report.record import Metric, Scalar

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def plain(text: str) -> str:
    r"""Replace what could steer a terminal or turn text around: control and bidi characters.

    Example:
        >>> plain("layer\x1b[2J")
        'layer�[2J'
    """
    return _CONTROL.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def scalar(value: Scalar) -> str:
    """Show a setting as YAML would: null, true, false, else as it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return plain(str(value))


def count(value: float, unit: str = "") -> str:
    """Show three significant digits with an SI prefix.

    Example:
        >>> count(272474), count(40_550_000, "B"), count(12)
        ('272 k', '40.5 MB', '12')
    """
    size = abs(value)
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.6 k would round to a fourth digit, so the next prefix starts a little earlier
        if size >= power * 0.9995:
            return f"{_three_digits(value / power)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}".strip()


def milliseconds(value: float) -> str:
    """Show a time that is given in milliseconds, with three significant digits.

    Example:
        >>> milliseconds(1.843), milliseconds(2500), milliseconds(0.0312)
        ('1.84 ms', '2.50 s', '31.2 µs')
    """
    size = abs(value)
    power, unit = (1e3, "s") if size >= 999.5 else (1.0, "ms") if size >= 0.9995 else (1e-3, "µs")
    return f"{value / power:.{_decimals(value / power)}f} {unit}"


def times(ratio: float) -> str:
    """Show a ratio: two digits, three close to 1, where a difference would vanish in rounding.

    Example:
        >>> times(2.04), times(1.043), times(16.2)
        ('2.0×', '1.04×', '16×')
    """
    if ratio < 1.095:
        return f"{ratio:.2f}×"
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def metric_value(value: float, metric: Metric) -> str:
    """Show 0.912 as 91.2 % when the metric is a fraction, else with four significant digits.

    Example:
        >>> metric_value(0.912, Metric()), metric_value(22.957, Metric("perplexity", percent=False))
        ('91.2 %', '22.96')
    """
    if metric.percent:
        return f"{value * 100:.1f} %"
    return f"{value:.4g}"


def metric_change(before: float, after: float, metric: Metric) -> str:
    """Show a difference with its sign, as +0.3 or −0.3 points, from the values as they are shown.

    Example:
        >>> metric_change(0.912, 0.909, Metric())
        '−0.3 points'
    """
    if metric.percent:
        # of the rounded values: 91.2 % and 90.9 % side by side must not differ by 0.4
        change = f"{round(after * 100, 1) - round(before * 100, 1):+.1f} points"
        change = change.replace("+0.0 ", "±0.0 ").replace("-0.0 ", "±0.0 ")
    else:
        change = f"{after - before:+.3g}"
    return change.replace("-", "−")


def error(value: float) -> str:
    """Show a relative error as 3e-07; 0 as 0."""
    return f"{value:.1e}" if value else "0"


def _decimals(value: float) -> int:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return min(2, max(0, digits))


def _three_digits(value: float) -> str:
    shown = f"{value:.{_decimals(value)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown
