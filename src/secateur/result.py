"""What ``sec.prune`` gives back, and the record that its report is made from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from torch import nn

from secateur import report
from secateur.environment import environment
from secateur.errors import ConfigError, MissingExtraError
from secateur.graph import Graph
from secateur.measure import Measurement
from secateur.measure.calling import describe
from secateur.plan.plan import Plan
from secateur.plan.store import save
from secateur.plan.verify import Verification
from secateur.report import Histogram, Layer, Locked, Metric, Proof, Record, State, Step, Weights
from secateur.report.html import render

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Result:
    """A pruned model and everything that is known about how it came to be.

    Attributes:
        model: The pruned (and healed) model.
        plan: What went from the original model, all steps in one.
        report: The record that pages, cards and ``metrics.json`` are made from.
        verification: Whether removal equals masking, or None if that was not asked for.
        measurement: What the model costs beside the dense one, or None if not measured.
        history: One entry a step: target, units removed, score, what recovery did, proof.
    """

    model: nn.Module
    plan: Plan
    report: Record
    verification: Verification | None = None
    measurement: Measurement | None = None
    history: tuple[Mapping[str, Any], ...] = ()

    def __rich__(self) -> RenderableType:
        return report.console(self.report)

    def __str__(self) -> str:
        terminal = Console(width=100)
        with terminal.capture() as shown:
            terminal.print(self)
        return shown.get()

    def __repr__(self) -> str:
        return f"Result({type(self.model).__name__}: {report.verdict(self.report).headline})"

    def described(self, **fields: Any) -> Result:
        """The same result with other fields of its record: title, model, command, data, ...

        Example:
            >>> result = result.described(model="zoo:resnet20", command="make demo")
        """
        return replace(self, report=replace(self.report, **fields))

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything into one folder, from which ``sec.load`` brings the model back.

        The folder holds ``plan.json``, ``model.safetensors``, ``README.md`` (a model card),
        ``metrics.json`` (the record) and, where jinja2 is installed, ``report.html``: all of them,
        or none if anything fails.

        Raises:
            StoreError: A file of somebody else is in the way, or a file cannot be written.

        Example:
            >>> result.save("out")
            PosixPath('out')
        """
        beside = {"metrics.json": _json(self.report.to_dict())}
        try:
            beside["report.html"] = render(self.report)
        except MissingExtraError as error:
            log.warning("%s", error)
        return save(
            directory,
            self.model,
            self.plan,
            card=report.card(self.report),
            beside=beside,
            overwrite=overwrite,
        )

    def html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page.

        Raises:
            StoreError: The file cannot be written.
            MissingExtraError: jinja2 is not installed.
        """
        return report.html(self.report, path)


@dataclass(frozen=True)
class Seen:
    """What was noted on the way: score and weight distribution in the three states of a model."""

    dense: float | None = None
    pruned: float | None = None
    healed: float | None = None
    dense_weights: Histogram | None = None
    pruned_weights: Histogram | None = None
    healed_weights: Histogram | None = None


def weights_of(model: nn.Module, like: Histogram | None = None) -> Histogram | None:
    """The distribution of a model's weights, or None if it has none or no values."""
    found = [p for p in model.parameters() if p.ndim >= 2 and p.is_floating_point() and p.numel()]
    if not found or any(p.is_meta for p in found):
        return None
    return report.histogram(model, like=like)


def check_judge(evaluate: Any, metric: Any) -> None:
    """Refuse, before anything is done, what could not be used when all is done.

    Raises:
        ConfigError: ``evaluate`` is no function, or ``metric`` no ``Metric``.
    """
    if evaluate is not None and not callable(evaluate):
        raise ConfigError(f"evaluate={evaluate!r}: give a function from a model to a number")
    if not isinstance(metric, Metric | None):
        raise ConfigError(
            f"metric={metric!r}: say what evaluate's number is with "
            'sec.report.Metric(name="mAP", percent=True, higher_is_better=True)'
        )


def make_record(
    graph: Graph,
    model: nn.Module,
    plan: Plan,
    made: nn.Module,
    seen: Seen,
    cost: Measurement | None,
    proof: Verification | None,
    metric: Metric | None,
    history: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Any],
    seed: int,
) -> Record:
    """Everything that a report of one run shows; ``model`` is the dense one."""
    if cost is not None and cost.against is not None:
        before, after = State.of(cost.against.dense, seen.dense), State.of(cost, seen.healed)
    else:
        before = State(sum(p.numel() for p in model.parameters()), accuracy=seen.dense)
        after = State(sum(p.numel() for p in made.parameters()), accuracy=seen.healed)
    healed = any(entry["recovery"] for entry in history)
    weights = None
    if seen.dense_weights is not None:
        weights = Weights(seen.dense_weights, seen.pruned_weights, seen.healed_weights)
    name = type(model).__name__
    return Record(
        title=f"{name}, pruned",
        model=name,
        before=before,
        after=after,
        unhealed=replace(after, accuracy=seen.pruned) if healed and len(history) == 1 else None,
        seed=seed,
        settings=_settings(plan.made_by, asked),
        environment=environment(),
        metric=metric or Metric(),
        proof=_proof(proof),
        layers=tuple(
            Layer(c.name, c.kind, c.size, c.size - plan.removed.get(c.name, 0))
            for c in graph.free.values()
        ),
        weights=weights,
        locked=_locked(graph),
        notes=plan.notes,
        history=_losses(history),
        inputs=describe(graph.example_inputs),
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _proof(proof: Verification | None) -> Proof | None:
    if proof is None:
        return None
    error = proof.error if proof.proven else None
    return Proof(error, proof.exact, proof.tolerance, proof.note)


# What everybody has: a report need not say it.
_USUAL = {
    "reduction": "sum", "normalizer": "none", "statistical": True, "fibred": False, "min_width": 1,
    "schedule": "one-shot", "steps": 1, "samples": 0,
}  # fmt: skip


def _settings(made_by: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say something, as text where they are no plain values."""
    return {
        name: value if isinstance(value, str | int | float | bool) else _text(value)
        for name, value in {**made_by, **asked}.items()
        if name not in ("seed", "torch")
        and value not in (None, [], {}, ())
        and _USUAL.get(name) != value
    }


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _locked(graph: Graph) -> tuple[Locked, ...]:
    """What cannot be pruned, one entry a module and reason; sizes of kernels go without saying."""
    found: dict[str, str] = {}
    for c in graph.classes.values():
        if c.locked and not c.locked.startswith("kernel size"):
            found.setdefault(c.name.partition("#")[0], c.locked)
    return tuple(Locked(name, reason) for name, reason in found.items())


def _losses(history: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The loss of every epoch of every recovery, counted through."""
    found: list[Step] = []
    start = 0
    for entry in history:
        for healing in entry["recovery"]:
            rows = [row for row in healing.get("history", ()) if "loss" in row]
            found += [Step(start + int(row["step"]), float(row["loss"])) for row in rows]
            start = found[-1].step if found else start
    return tuple(found)
