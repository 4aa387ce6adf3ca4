"""The line on top of every report: what was gained, measured, and at what price."""

import math
from dataclasses import dataclass
from typing import Literal

from secateur.report.record import Record, State
from secateur.report.units import count, error, metric_value, milliseconds, plain, times

_ALIKE = 0.03  # a ratio so near 1 is called no difference
Tone = Literal["good", "mixed", "bad"]


@dataclass(frozen=True)
class Verdict:
    """``parts`` of the headline (size, speed, accuracy), ``proof`` for below it, ``tone`` for both.

    ``warnings`` say in a sentence each what keeps the tone from being good.
    """

    parts: tuple[str, ...]
    proof: str
    tone: Tone
    warnings: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The parts as one line."""
        return ", ".join(self.parts)


def verdict(record: Record) -> Verdict:
    """Say in one line what came of the run; a loss is called a loss.

    The tone is bad when the model became slower or larger, when the proof failed, or when the
    metric lost over 5 points (over 25 %, if it is no fraction); mixed when there was no measurable
    speed-up, something was not measured or proven, or the metric lost over 1 point (5 %).

    Example:
        >>> from secateur.report import Record, Speedup, State
        >>> dense, slow = State(100, 50), State(50, 25, speedup=Speedup(0.5, 0.4, 0.6))
        >>> verdict(Record("t", "m", dense, slow)).headline
        '2.0× fewer MACs, 2.0× slower measured, accuracy not measured'
    """
    parts = (_size(record),) if record.dry else (_size(record), _speed(record), _accuracy(record))
    proof, proof_tone, proof_warning = _proof(record)
    tones = {tone for _, tone, _ in parts} | {proof_tone}
    warnings = (*(warning for _, _, warning in parts), proof_warning)
    return Verdict(
        parts=tuple(text for text, _, _ in parts),
        proof=proof,
        tone="bad" if "bad" in tones else "mixed" if "mixed" in tones else "good",
        warnings=tuple(warning for warning in warnings if warning),
    )


def speedup(before: State, after: State) -> float | None:
    """Dense time / pruned time: the interleaved ratio when there is one, else of the medians."""
    if after.speedup is not None:
        return after.speedup.ratio
    if before.latency is None or after.latency is None:
        return None
    return before.latency.median_ms / after.latency.median_ms


def change(before: float, after: float, less: str, more: str) -> str:
    """Say ``2.0× fewer``, ``1.5× more`` or ``the same``, within half a percent.

    Example:
        >>> change(100, 50, "fewer", "more"), change(50, 75, "fewer", "more")
        ('2.0× fewer', '1.5× more')
    """
    if after == before or (before and abs(after / before - 1) < 0.005):
        return "the same"
    if after > before:
        return f"{times(after / before)} {more}" if before else more
    return f"{times(before / after)} {less}" if after else f"all {less}"


def speed_change(before: State, after: State) -> str | None:
    """Say ``1.6× faster``, ``no faster`` or ``not conclusive``; None when not measured."""
    ratio = speedup(before, after)
    if ratio is None:
        return None
    if noise(before, after):
        return "not conclusive"
    if abs(ratio - 1) < _ALIKE:
        return "no faster"
    return f"{times(ratio)} faster" if ratio > 1 else f"{times(1 / ratio)} slower"


_Part = tuple[str, Tone, str]


def _size(record: Record) -> _Part:
    before, after = record.before, record.after
    pairs = [
        (before.macs, after.macs, "MACs"),
        (before.parameters, after.parameters, "parameters"),
    ]
    measured = [(b, a, noun) for b, a, noun in pairs if b is not None and a is not None]
    changed = [(b, a, n) for b, a, n in measured if change(b, a, "", "") != "the same"]
    if not changed and (after.zeros or 0) > (before.zeros or 0):
        # zeros inside weights leave MACs and shapes as they were
        return f"{(after.zeros or 0) * 100:.0f} % of the weights zero", "good", ""
    b, a, noun = (changed or measured)[0]
    text = f"{change(b, a, 'fewer', 'more')} {noun}"
    if not changed:
        return text, "mixed", f"The number of {noun} did not change ({count(a)})."
    if a > b:
        warning = f"The pruned model has more {noun} ({count(a)}) than the dense one ({count(b)})."
        return text, "bad", warning
    return text, "good", ""


def _speed(record: Record) -> _Part:
    before, after = record.before, record.after
    ratio, text = speedup(before, after), speed_change(before, after)
    if ratio is None or text is None:
        return (
            "latency not measured",
            "mixed",
            "Latency was not measured: fewer MACs alone do not say that it is faster.",
        )
    spread = noise(before, after)
    if spread:
        return (
            "speed not conclusive",
            "mixed",
            f"Whether it is faster is not conclusive: {spread}. Measure again with more repeats, "
            "on a quiet machine, or with fewer threads.",
        )
    text = f"{text} measured"
    if text.startswith("no "):
        return text, "mixed", "There is no measurable speed-up on this machine."
    if ratio < 1:
        return text, "bad", "The pruned model is slower than the dense one on this machine."
    return text, "good", ""


def noise(before: State, after: State) -> str:
    """Say between what single runs varied, when that hides which is faster; else nothing.

    The median of n runs is known to about (p90 − p10) / √n: two standard errors, 2 · 1.25 σ / √n,
    with p90 − p10 = 2.56 σ.
    """
    dense, pruned, gain = before.latency, after.latency, after.speedup
    if gain is not None:
        known_to = (gain.p90 - gain.p10) / math.sqrt(pruned.repeats or 1 if pruned else 1)
        said = f"the speed-up of single runs went from {gain.p10:.2f}× to {gain.p90:.2f}×"
        return said if max(abs(gain.ratio - 1), _ALIKE) < known_to else ""
    if dense is None or pruned is None:
        return ""
    known_to = math.hypot(
        *((t.p90_ms - t.p10_ms) / math.sqrt(t.repeats or 1) for t in (dense, pruned))
    )
    if max(abs(dense.median_ms - pruned.median_ms), _ALIKE * dense.median_ms) >= known_to:
        return ""
    return (
        f"dense took {milliseconds(dense.p10_ms)} to {milliseconds(dense.p90_ms)}, "
        f"pruned {milliseconds(pruned.p10_ms)} to {milliseconds(pruned.p90_ms)}"
    )


def _accuracy(record: Record) -> _Part:
    metric, before, after = record.metric, record.before.accuracy, record.after.accuracy
    name = plain(metric.name)
    for which, state in (("pruned", record.after), ("dense", record.before)):
        if state.not_finite:
            found = plain(state.not_finite)
            warning = f"The {name} of the {which} model is {found}, which is no finite number."
            return f"{name} {found} ({which})", "bad", warning
    if after is None:
        warning = f"The {name} of the pruned model was not measured."
        return f"{name} not measured", "mixed", warning
    if before is None:
        warning = f"The {name} of the dense model was not measured."
        return f"{name} {metric_value(after, metric)} (dense not measured)", "mixed", warning
    text = f"{name} {metric_value(before, metric)} → {metric_value(after, metric)}"
    loss = before - after if metric.higher_is_better else after - before
    if not metric.percent:
        loss = loss / abs(before) / 5 if before else loss  # 5 % counts as a point
    if loss > 0.05:
        return text, "bad", f"The {name} is far from the dense model's."
    if loss > 0.01:
        return text, "mixed", f"The {name} has not recovered."
    return text, "good", ""


def _proof(record: Record) -> _Part:
    proof, before, after = record.proof, record.before, record.after
    if proof is None and (before.parameters, before.macs) == (after.parameters, after.macs):
        return "", "good", ""  # zeros inside weights: nothing was removed that a proof could be of
    if proof is None:
        text = "Not proven: it was not checked that the pruned model computes what masking does."
        return text, "mixed", ""
    statement = plain(proof.statement)
    if proof.proven and proof.error is not None:
        against = (
            "the masked dense model"
            if proof.exact
            else "the masked dense model with norms taken over what was kept"
        )
        text = f"Proven: it computes what {against} computes (relative error {error(proof.error)})."
        return f"{text} {statement}".strip(), "good", ""
    if proof.error is None:
        return f"Not proven: {statement or 'no comparison could be run.'}", "mixed", ""
    text = (
        f"Not proven: it differs from the masked dense model by {error(proof.error)}, "
        f"above {error(proof.tolerance)}."
    )
    warning = "The pruned model does not compute what it should: find out why before using it."
    return f"{text} {statement}".strip(), "bad", warning
