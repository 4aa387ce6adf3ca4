"""The verdict calls a loss a loss."""

import dataclasses

import pytest
from rich.console import Console

from secateur.report import Latency, Metric, Proof, Record, Speedup, State, card, console, verdict
from secateur.report.html import render

DENSE = State(100_000, 40_000_000, latency=Latency(2.0, 1.9, 2.1, 1, 20), accuracy=0.912)
SMALL = State(
    50_000,
    20_000_000,
    latency=Latency(1.25, 1.2, 1.3, 1, 20),
    speedup=Speedup(1.6, 1.5, 1.7),
    accuracy=0.909,
)
GOOD = Record("t", "m", DENSE, SMALL, metric=Metric("top-1"), proof=Proof(3e-7, exact=True))


def after(**changes: object) -> Record:
    return dataclasses.replace(GOOD, after=dataclasses.replace(SMALL, **changes))


def test_a_gain_is_said_in_one_line():
    said = verdict(GOOD)
    assert said.headline == "2.0× fewer MACs, 1.6× faster measured, top-1 91.2 % → 90.9 %"
    assert said.tone == "good" and not said.warnings
    assert said.proof.startswith("Proven:") and "3.0e-07" in said.proof


@pytest.mark.parametrize(
    ("record", "tone", "headline"),
    [
        (after(speedup=Speedup(0.5, 0.45, 0.55)), "bad", "2.0× slower measured"),
        (after(speedup=Speedup(1.01, 1.0, 1.02)), "mixed", "no faster measured"),
        (after(speedup=Speedup(1.2, 0.2, 3.0)), "mixed", "MACs, speed not conclusive"),
        (after(speedup=None), "good", "1.6× faster measured"),
        (
            after(speedup=None, latency=Latency(1.8, 0.9, 3.1, 1, 4)),
            "mixed",
            "MACs, speed not conclusive",
        ),
        (after(speedup=None, latency=None), "mixed", "latency not measured"),
        (after(accuracy=0.89), "mixed", "91.2 % → 89.0 %"),
        (after(accuracy=0.1), "bad", "91.2 % → 10.0 %"),
        (after(accuracy=None), "mixed", "top-1 not measured"),
        (after(macs=80_000_000), "bad", "2.0× more MACs"),
        (after(macs=40_000_000), "good", "2.0× fewer parameters"),
        (after(macs=None), "good", "2.0× fewer parameters"),
        (after(macs=40_000_000, parameters=100_000), "mixed", "the same MACs"),
        (after(macs=40_000_000, parameters=100_000, zeros=0.9), "good", "90 % of the weights zero"),
    ],
)
def test_every_outcome_is_called_by_its_name(record, tone, headline):
    said = verdict(record)
    assert headline in said.headline
    assert said.tone == tone
    assert bool(said.warnings) == (tone != "good")


@pytest.mark.parametrize(
    ("proof", "tone", "text"),
    [
        (None, "mixed", "Not proven"),
        (Proof(0.2, exact=True), "bad", "Not proven: it differs"),
        (Proof(None, exact=False, statement="its output is random."), "mixed", "output is random"),
        (Proof(1e-6, exact=False), "good", "norms taken over what was kept"),
        (Proof(0.0, exact=True), "good", "relative error 0"),
    ],
)
def test_what_is_not_proven_is_not_called_proven(proof, tone, text):
    said = verdict(dataclasses.replace(GOOD, proof=proof))
    assert said.tone == tone and text in said.proof
    assert said.proof.startswith("Proven") == (tone == "good")


def test_a_ratio_that_is_all_noise_is_nowhere_said():
    wild = after(speedup=Speedup(1 / 13, 0.01, 110.0), accuracy=0.912)
    said = verdict(wild)
    assert said.tone == "mixed" and "slower" not in said.headline
    assert "more repeats" in said.warnings[0] and "0.01× to 110.00×" in said.warnings[0]
    terminal = Console(width=120)
    with terminal.capture() as shown:
        terminal.print(console(wild))
    for text in (card(wild), render(wild), shown.get()):
        assert "speed not conclusive" in text and "× slower" not in text


def test_a_dry_run_misses_nothing():
    dry = dataclasses.replace(after(speedup=None, latency=None, accuracy=None), dry=True)
    assert verdict(dry).warnings == () and verdict(dry).tone == "good"
    dry = dataclasses.replace(dry, seed=0, environment={"torch": "2"})
    terminal = Console(width=120)
    with terminal.capture() as shown:
        terminal.print(console(dry))
    assert "Run it again" not in shown.get() and "not measured" not in shown.get()


def test_zeros_need_no_proof_of_removal():
    record = after(macs=40_000_000, parameters=100_000, zeros=0.9)
    assert verdict(dataclasses.replace(record, proof=None)).proof == ""


@pytest.mark.parametrize(("value", "tone"), [(23.2, "good"), (25.0, "mixed"), (60.0, "bad")])
def test_a_higher_perplexity_is_worse(value, tone):
    record = dataclasses.replace(
        after(accuracy=value),
        before=dataclasses.replace(DENSE, accuracy=22.957),
        metric=Metric("perplexity", percent=False, higher_is_better=False),
    )
    said = verdict(record)
    assert said.tone == tone
    assert f"perplexity 22.96 → {value:.4g}" in said.headline
