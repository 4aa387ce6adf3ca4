"""The record of one run: what ``metrics.json`` holds, and all that a report is made from."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from secateur.errors import ConfigError, StoreError
from secateur.report.decode import decode, encode

if TYPE_CHECKING:
    from secateur.measure import Measurement

SCHEMA = 1

Scalar = str | int | float | bool | None


def _require(fine: bool, message: str) -> None:
    if not fine:
        raise ConfigError(message)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass: median, 10th and 90th percentile, and how it was timed."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    threads: int
    repeats: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        _require(self.median_ms > 0, f"median_ms is {self.median_ms}; a time is above 0")
        _require(
            0 <= self.p10_ms <= self.median_ms <= self.p90_ms,
            f"p10_ms, median_ms, p90_ms are {self.p10_ms}, {self.median_ms}, {self.p90_ms}; "
            "they go upwards",
        )
        _require(self.threads >= 1, f"threads is {self.threads}; at least one ran")


@dataclass(frozen=True)
class Speedup:
    """Dense time / this time, timed in turn in one run; p10 and p90 are over the pairs."""

    ratio: float
    p10: float
    p90: float

    def __post_init__(self) -> None:
        _require(0 < self.p10 <= self.p90, f"p10, p90 are {self.p10}, {self.p90}; they go upwards")
        _require(self.ratio > 0, f"ratio is {self.ratio}; it is above 0")


@dataclass(frozen=True)
class State:
    """One state of the model, measured; what was not measured is None and is left out.

    ``zeros`` is the fraction of the parameters that are 0; ``speedup`` is against the dense model;
    ``peak_memory`` and ``file_bytes`` are bytes, ``energy_mj`` is modelled millijoules a forward;
    ``accuracy`` is the value of the record's ``metric``; one that is not finite becomes None, and
    ``not_finite`` says what it was.
    """

    parameters: int
    macs: int | None = None
    zeros: float | None = None
    latency: Latency | None = None
    speedup: Speedup | None = None
    peak_memory: int | None = None
    file_bytes: int | None = None
    energy_mj: float | None = None
    accuracy: float | None = None
    not_finite: str = ""

    def __post_init__(self) -> None:
        if self.accuracy is not None:  # JSON has no such numbers, and no chart a place for them
            finite = math.isfinite(self.accuracy)
            object.__setattr__(self, "not_finite", "" if finite else str(self.accuracy))
            object.__setattr__(self, "accuracy", self.accuracy if finite else None)
        for name in ("parameters", "macs", "peak_memory", "file_bytes", "energy_mj"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"{name} is {value}; it cannot be negative")
        _require(self.zeros is None or 0 <= self.zeros <= 1, f"zeros is {self.zeros}; a fraction")

    @classmethod
    def of(cls, measured: "Measurement", accuracy: float | None = None) -> Self:
        """Take what a report shows from what ``secateur.measure`` returned.

        Example:
            >>> import torch
            >>> from secateur.measure import measure
            >>> State.of(measure(torch.nn.Linear(10, 5), torch.zeros(1, 10), repeats=0)).macs
            50
        """
        timed, against = measured.latency, measured.against
        gain = against.speedup if against else None
        return cls(
            parameters=measured.parameters,
            macs=measured.macs,
            zeros=measured.zeros,
            latency=Latency(
                timed.median_ms,
                timed.p10_ms,
                timed.p90_ms,
                timed.threads,
                timed.repeats,
                timed.device,
            )
            if timed
            else None,
            speedup=Speedup(gain.ratio, gain.p10, gain.p90) if gain else None,
            peak_memory=measured.memory.peak,
            file_bytes=measured.file_bytes,
            energy_mj=measured.energy.millijoules,
            accuracy=accuracy,
        )


@dataclass(frozen=True)
class Metric:
    """What ``accuracy`` means: ``percent`` says that 0.912 is to be read as 91.2 %."""

    name: str = "accuracy"
    percent: bool = True
    higher_is_better: bool = True


@dataclass(frozen=True)
class Data:
    """The data of the run and their hash, so that another run can tell whether it has the same."""

    description: str
    hash: str = ""


@dataclass(frozen=True)
class Proof:
    """What ``plan.verify`` found: the relative error of masked dense against pruned.

    ``exact`` says that the plan touches only classes where masking equals removal; otherwise the
    reference evaluates norms over the kept positions. ``statement`` says why, when not proven.
    """

    error: float | None
    exact: bool
    tolerance: float = 1e-4
    statement: str = ""

    @property
    def proven(self) -> bool:
        """Whether an error was measured and is within the tolerance."""
        return self.error is not None and self.error <= self.tolerance


@dataclass(frozen=True)
class Layer:
    """The width of one layer (channels, heads, ...) before and after."""

    name: str
    kind: str
    before: int
    after: int

    def __post_init__(self) -> None:
        _require(
            self.before >= 0 and self.after >= 0,
            f"`{self.name}` goes from {self.before} to {self.after}; a width is not negative",
        )


@dataclass(frozen=True)
class Histogram:
    """Counts of weights between ``edges``; weights that are exactly 0 are in ``zeros`` instead."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int = 0

    def __post_init__(self) -> None:
        _require(
            len(self.edges) == len(self.counts) + 1 and len(self.counts) > 0,
            f"{len(self.edges)} edges and {len(self.counts)} counts; edges are one more",
        )
        _require(
            all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)),
            "edges do not increase",
        )
        _require(min(self.counts) >= 0 and self.zeros >= 0, "a count is negative")


@dataclass(frozen=True)
class Weights:
    """Weight distributions of the dense, the pruned and the recovered model."""

    dense: Histogram
    pruned: Histogram | None = None
    recovered: Histogram | None = None


@dataclass(frozen=True)
class Curve:
    """Sensitivity of one unit class: ``points`` are (fraction removed, metric)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Point:
    """One run of several: fraction removed, accuracy, measured speed-up (dense / pruned time)."""

    ratio: float
    accuracy: float
    speedup: float
    chosen: bool = False
    label: str = ""


@dataclass(frozen=True)
class Locked:
    """What was not pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One logged step of recovery; ``loss`` is None where it was not finite."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class Record:
    """All that a report shows; every part but the first four may be missing and is then left out.

    ``inputs`` are the shapes of the example batch that costs are counted and timed on; ``dry`` says
    that nothing was to be timed, judged or written, so that none of it is missing.

    Example:
        >>> record = Record("Half a net", "zoo:resnet20", State(200), State(100))
        >>> Record.from_dict(record.to_dict()) == record
        True
    """

    title: str
    model: str
    before: State
    after: State
    unhealed: State | None = None
    command: str = ""
    seed: int | None = None
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    environment: Mapping[str, Scalar] = field(default_factory=dict)
    data: Data | None = None
    metric: Metric = Metric()
    proof: Proof | None = None
    layers: tuple[Layer, ...] = ()
    weights: Weights | None = None
    sensitivity: tuple[Curve, ...] = ()
    pareto: tuple[Point, ...] = ()
    locked: tuple[Locked, ...] = ()
    notes: tuple[str, ...] = ()
    history: tuple[Step, ...] = ()
    inputs: str = ""
    dry: bool = False
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _require(self.schema == SCHEMA, _other_schema(self.schema))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars that ``json.dump`` takes."""
        encoded: dict[str, Any] = encode(self)
        return encoded

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Check and decode what ``to_dict`` gave.

        Raises:
            StoreError: names the entry that is missing, unknown, of the wrong type or not finite.
        """
        # before the rest: a record of another schema has other entries
        if isinstance(values, Mapping) and values.get("schema", SCHEMA) != SCHEMA:
            raise StoreError(f"record.{_other_schema(values['schema'])}.")
        record: Self = decode(cls, values, "record")
        return record


def read(path: str | Path) -> Record:
    """Read a record from a JSON file, as ``metrics.json`` of a run directory.

    Raises:
        StoreError: the file cannot be read, is no JSON, or is no record.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot read the record `{path}`: {error.strerror or error}.") from error
    except ValueError as error:
        raise StoreError(
            f"`{path}` is not valid JSON ({error}); it may be truncated. Run the command again."
        ) from error
    try:
        return Record.from_dict(values)
    except StoreError as error:
        raise StoreError(f"`{path}`: {error}") from error


def as_record(record: Record | Mapping[str, Any]) -> Record:
    """Return ``record`` itself, or decode it if it is still a mapping."""
    return record if isinstance(record, Record) else Record.from_dict(record)


def _other_schema(schema: Any) -> str:
    return (
        f"schema is {schema!r} but this secateur reads {SCHEMA}; "
        "use the version that wrote it, or run the command again"
    )
