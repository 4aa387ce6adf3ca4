"""The before/after table, made once for the page, the terminal and the card."""

from collections.abc import Callable
from dataclasses import dataclass

from secateur.report.record import Latency, Metric, Record, State
from secateur.report.units import count, metric_change, metric_value, milliseconds, plain
from secateur.report.verdict import change, speed_change, speedup


@dataclass(frozen=True)
class Cell:
    """One value and, smaller, what qualifies it (spread, threads)."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One quantity: a cell for each column and the change from dense to final."""

    label: str
    cells: tuple[Cell, ...]
    change: str
    remaining: float | None = None


def columns(record: Record) -> tuple[str, ...]:
    """Name the measured states of the model, dense first."""
    if record.unhealed is not None:
        return "Dense", "Pruned, not healed", "Pruned and healed"
    return "Dense", "Pruned and healed" if record.history else "Pruned"


def states(record: Record) -> tuple[State, ...]:
    """Give the measurements in the order of ``columns``."""
    middle = () if record.unhealed is None else (record.unhealed,)
    return record.before, *middle, record.after


def rows(record: Record) -> tuple[Row, ...]:
    """Build the table; a quantity that no state has is left out, a missing cell is a dash.

    ``remaining`` is after / before, for quantities of which less is better.

    Example:
        >>> from secateur.report import Latency, Metric, Record, State
        >>> [row.label for row in rows(Record("t", "m", State(10), State(5)))]
        ['Parameters']
    """
    metric = record.metric

    def quantity(label: str, name: str, unit: str, less: str, more: str) -> Row | None:
        return _row(
            record,
            label,
            lambda state: getattr(state, name),
            lambda value: Cell(count(value, unit)),
            lambda before, after: change(before, after, less, more),
        )

    def score(before: float, after: float) -> str:
        return metric_change(before, after, metric)

    accuracy = _row(
        record,
        plain(metric.name)[:1].upper() + plain(metric.name)[1:],
        lambda state: state.accuracy,
        lambda value: Cell(metric_value(value, metric)),
        score,
        lower_is_better=False,
    )
    found = (
        quantity("Parameters", "parameters", "", "fewer", "more"),
        _zeros(record),
        quantity("MACs", "macs", "", "fewer", "more"),
        _latency(record),
        accuracy,
        quantity("Peak memory", "peak_memory", "B", "less", "more"),
        quantity("File size", "file_bytes", "B", "smaller", "larger"),
        quantity("Energy, modelled", "energy_mj", "mJ", "less", "more"),
    )
    return tuple(row for row in found if row is not None)


def _row(
    record: Record,
    label: str,
    get: Callable[[State], float | None],
    show: Callable[[float], Cell],
    compare: Callable[[float, float], str],
    lower_is_better: bool = True,
) -> Row | None:
    values = [get(state) for state in states(record)]
    if all(value is None for value in values):
        return None
    first, last = values[0], values[-1]
    known = first is not None and last is not None
    return Row(
        label,
        tuple(Cell("–") if value is None else show(value) for value in values),
        compare(first, last) if first is not None and last is not None else "",
        last / first if known and first and last is not None and lower_is_better else None,
    )


def _zeros(record: Record) -> Row | None:
    if all((state.zeros or 0) < 0.001 for state in states(record)):
        return None  # whole units were removed, or nothing: no row of zeros
    return _row(
        record,
        "Zero parameters",
        lambda state: state.zeros,
        lambda value: Cell(f"{value * 100:.1f} %"),
        lambda before, after: metric_change(before, after, Metric("zeros")),
        lower_is_better=False,
    )


def _latency(record: Record) -> Row | None:
    found = [state.latency for state in states(record)]
    if all(latency is None for latency in found):
        return None
    cells = tuple(Cell("–") if latency is None else _timed(latency) for latency in found)
    ratio = speedup(record.before, record.after)
    return Row(
        "Latency, median",
        cells,
        speed_change(record.before, record.after) or "",
        1 / ratio if ratio else None,
    )


def _timed(latency: Latency) -> Cell:
    low, high = milliseconds(latency.p10_ms), milliseconds(latency.p90_ms)
    if low.split()[1] == high.split()[1]:
        low = low.split()[0]
    return Cell(milliseconds(latency.median_ms), f"{low} – {high}")


def footnotes(record: Record) -> tuple[str, ...]:
    """Say what batch the costs are of, how the latency was taken, and that energy is a model."""
    said = []
    if record.inputs and record.after.macs is not None:
        said.append(f"MACs, latency and memory are those of one forward of {record.inputs}.")
    timed = [state.latency for state in states(record) if state.latency is not None]
    if timed:
        ways = {
            f"{'1 thread' if t.threads == 1 else f'{t.threads} threads'} on {plain(t.device)}"
            for t in timed
        }
        runs = {f"{t.repeats} runs" for t in timed if t.repeats} or {"all runs"}
        said.append(
            f"Latency: the median, below it the 10th to 90th percentile of "
            f"{' or '.join(sorted(runs))}; {' or '.join(sorted(ways))}."
        )
    if record.after.speedup is not None:
        said.append("Dense and pruned were timed in turn, so that other load met them alike.")
    if any(state.energy_mj is not None for state in states(record)):
        said.append("Energy follows from a model of operations and memory; it was not measured.")
    return tuple(said)


def legend(record: Record) -> str:
    """What a name like ``stem#2`` means, where the widths have one."""
    if not any("#" in layer.name for layer in record.layers):
        return ""
    return (
        "A layer with entries name, name#2, ... has several dimensions that are pruned on their "
        "own (groups and channels in a group, or heads and their width): its width is their "
        "product."
    )
