"""Show what was gained: one record in; a page, a terminal table or a model card out.

- ``record``: the frozen values of one run, read from and written to ``metrics.json``;
- ``histogram``: the weight distribution of a model, for the record;
- ``verdict``: the one line that says what came of it, honest when it is slower or unproven;
- ``html``: one self-contained page; ``console``: the same for the terminal; ``card``: README.md.

Example:
    >>> from secateur import report
    >>> record = report.Record("Half a net", "zoo", report.State(200), report.State(100))
    >>> report.verdict(record).headline
    '2.0× fewer parameters, latency not measured, accuracy not measured'
"""

from secateur.report.card import card
from secateur.report.console import console
from secateur.report.histogram import histogram
from secateur.report.html import html
from secateur.report.record import (
    Curve,
    Data,
    Histogram,
    Latency,
    Layer,
    Locked,
    Metric,
    Point,
    Proof,
    Record,
    Speedup,
    State,
    Step,
    Weights,
    read,
)
from secateur.report.verdict import Verdict, verdict

__all__ = [
    "Curve",
    "Data",
    "Histogram",
    "Latency",
    "Layer",
    "Locked",
    "Metric",
    "Point",
    "Proof",
    "Record",
    "Speedup",
    "State",
    "Step",
    "Verdict",
    "Weights",
    "card",
    "console",
    "histogram",
    "html",
    "read",
    "verdict",
]
