"""Measure what a model costs: parameters, MACs, latency, peak memory, file size."""

from __future__ import annotations

import argparse
from dataclasses import replace

from secateur.cli import config, flags, models
from secateur.cli.answer import Answer, started

EXAMPLES = (
    "secateur measure zoo:resnet8 --repeats 10",
    "secateur measure out --against zoo:resnet8 --batch 8",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and another to time it beside."""
    parser.add_argument("model", metavar="MODEL", help=models.FORMS)
    parser.add_argument(
        "--against", metavar="MODEL", help="the dense model: timed in turn with this one"
    )
    flags.add(parser, "original weights inputs batch repeats warmup seed threads device dtype")


def run(options: argparse.Namespace) -> Answer:
    """Measure one model, or one beside another on the same inputs."""
    import secateur as sec

    # one sample, as MACs are usually stated
    chosen = config.make({"batch": 1, **flags.given(options), "model": options.model})
    source, model, inputs = models.open_model(chosen)
    dense = None
    if options.against is not None:
        other = replace(chosen, model=config.resolved(options.against), weights=None, original=None)
        _, dense, _ = models.open_model(other)
    started(f"measuring {source.spec}, {chosen.repeats} timed forwards", options)
    found = sec.measure(model, inputs, against=dense, repeats=chosen.repeats, warmup=chosen.warmup)
    return Answer({"model": source.spec, **found.to_dict()}, f"{source.spec}\n{found}")
