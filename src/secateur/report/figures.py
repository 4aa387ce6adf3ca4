"""The figures of the page: weight distributions, widths, sensitivity, trade-off and recovery."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.record import (
    Curve,
    Histogram,
    Layer,
    Metric,
    Point,
    State,
    Step,
    Weights,
)
from secateur.report.svg import (
    Scale,
    bar,
    circle,
    drawing,
    frame,
    line,
    number,
    path,
    spanning,
    text,
)
from secateur.report.units import count, metric_value, plain, times

WIDTH, HEIGHT = 480, 310
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 42, 52
_COLOURED = 6  # curves that get a colour of their own; more cannot be told apart


@dataclass(frozen=True)
class Figure:
    """A picture with its caption, its legend (CSS class, text) and its numbers as a table."""

    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def distributions(weights: Weights) -> tuple[Figure, ...]:
    """Draw one panel a state of the model, on common axes, the dense outline behind the others."""
    panels = [
        ("dense", "Before pruning", weights.dense),
        ("pruned", "After pruning", weights.pruned),
        ("recovered", "After recovery", weights.recovered),
    ]
    found = [(css, name, shown) for css, name, shown in panels if shown is not None]
    width, height = 360, 270
    low = min(shown.edges[0] for _, _, shown in found)
    high = max(shown.edges[-1] for _, _, shown in found)
    x = Scale(low, high, 52, width - 14)
    top = max(max(shown.counts) for _, _, shown in found)
    # the floor is below 1 so that a bin with a single weight is seen
    y = Scale(0.5, max(top, 10) * 1.6, height - BOTTOM, 36, log=True)
    figures = []
    for css, name, shown in found:
        total = sum(shown.counts) + shown.zeros
        said = f"{count(total)} weights"
        if shown.zeros:
            said += f", {shown.zeros / total:.1%} exactly zero (not drawn)".replace("%", " %")
        parts = frame(x, y, "weight", "count, log scale")
        parts.append(path(_steps(shown, x, y, filled=True), f"area {css}", close=True))
        if css != "dense":
            parts.append(path(_steps(weights.dense, x, y), "outline"))
        description = f"{name}: histogram of {said}, between {number(low)} and {number(high)}."
        figures.append(Figure(drawing(width, height, description, parts), f"{name}: {said}"))
    return tuple(figures)


def _steps(shown: Histogram, x: Scale, y: Scale, filled: bool = False) -> list[tuple[float, float]]:
    points = []
    for low, high, found in zip(shown.edges, shown.edges[1:], shown.counts, strict=False):
        level = y(found)
        points += [(x(low), level), (x(high), level)]
    ends = [(x(shown.edges[0]), y.start), (x(shown.edges[-1]), y.start)]
    return [ends[0], *points, ends[1]] if filled else points


def skyline(layers: Sequence[Layer]) -> Figure:
    """Draw the widths of all layers from input to output: the dense behind, the kept in front."""
    width, height = 1000, 300
    x = Scale(0, len(layers), LEFT, width - RIGHT)
    y = Scale(0, max(1, *(max(layer.before, layer.after) for layer in layers)) * 1.05, 252, TOP)
    slot = (x.end - x.start) / len(layers)
    gap = min(3.0, slot * 0.2)
    parts = frame(x, y, "layer, in the order of the model", "width", x_ticks=())
    for index, layer in enumerate(layers):
        hint = f"{layer.name}: {layer.before} → {layer.after}"
        for size, css in ((layer.before, "fill dense"), (layer.after, "fill recovered")):
            parts.append(bar(x(index) + gap / 2, y(size), slot - gap, y.start - y(size), css, hint))
    before, after = (sum(getattr(layer, s) for layer in layers) for s in ("before", "after"))
    description = f"Widths of {len(layers)} layers; in all {before} before and {after} after."
    legend = (("swatch dense", "removed"), ("swatch recovered", "kept"))
    return Figure(drawing(width, height, description, parts), description, legend)


def _metric_axis(metric: Metric) -> tuple[str, float]:
    name = _short(metric.name, 40)
    return (f"{name}, %", 100.0) if metric.percent else (name, 1.0)


def sensitivity(curves: Sequence[Curve], metric: Metric, dense: float | None) -> Figure | None:
    """Draw the metric against the fraction removed of one class at a time, worst first.

    Returns None when no curve has a point.
    """
    kept = [Curve(curve.name, tuple(sorted(curve.points))) for curve in curves if curve.points]
    if not kept:
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    kept.sort(key=lambda curve: sign * sum(value for _, value in curve.points) / len(curve.points))
    name, factor = _metric_axis(metric)
    ratios = [ratio for curve in kept for ratio, _ in curve.points]
    values = [value * factor for curve in kept for _, value in curve.points]
    values += [dense * factor] if dense is not None else []
    x = spanning([0.0, *(ratio * 100 for ratio in ratios)], LEFT, WIDTH - RIGHT, 0.02)
    y = spanning(values, HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, "removed from the class, %", name)
    if dense is not None:
        parts.append(line(x.start, y(dense * factor), x.end, y(dense * factor), "reference"))
    for index, curve in reversed(list(enumerate(kept))):  # the most sensitive is drawn on top
        css = f"c{index + 1}" if index < _COLOURED else "other"
        places = [(x(ratio * 100), y(value * factor)) for ratio, value in curve.points]
        parts.append(path(places, f"curve {css}", curve.name))
        if css != "other":
            parts += [
                circle(*place, 3, f"dot {css}", f"{curve.name}: {metric_value(value, metric)}")
                for place, (_, value) in zip(places, curve.points, strict=True)
            ]
    legend = [(f"stroke c{i + 1}", curve.name) for i, curve in enumerate(kept[:_COLOURED])]
    if len(kept) > _COLOURED:
        legend.append(("stroke other", f"{len(kept) - _COLOURED} less sensitive"))
    if dense is not None:
        legend.append(("stroke reference", "dense"))
    columns = sorted(set(ratios))
    rows = tuple(
        (
            curve.name,
            *(
                metric_value(dict(curve.points)[ratio], metric)
                if ratio in dict(curve.points)
                else "–"
                for ratio in columns
            ),
        )
        for curve in kept
    )
    description = (
        f"{plain(metric.name)} when only one class is pruned, for {len(kept)} classes; "
        f"the most sensitive is {plain(kept[0].name)}."
    )
    return Figure(
        drawing(WIDTH, HEIGHT, description, parts),
        description[:1].upper() + description[1:],
        tuple(legend),
        ("Class", *(f"{ratio:.0%}".replace("%", " %") for ratio in columns)),
        rows,
    )


def pareto(points: Sequence[Point], metric: Metric, before: State) -> Figure:
    """Draw accuracy against measured speed-up; the line joins the runs that no other beats."""
    name, factor = _metric_axis(metric)
    dense = () if before.accuracy is None else ((1.0, before.accuracy * factor),)
    speeds = [1.0, *(point.speedup for point in points)]
    x = Scale(min(speeds) * 0.8, max(speeds) * 1.08, LEFT, WIDTH - RIGHT)
    y = spanning(
        [*(p.accuracy * factor for p in points), *(value for _, value in dense)],
        HEIGHT - BOTTOM,
        TOP,
        0.12,
    )
    parts = frame(x, y, "measured speed-up", name, x_show=lambda value: f"{value:.3g}×")
    parts.append(line(x(1), y.start, x(1), y.end, "reference"))
    places = [(point.speedup, point.accuracy * factor) for point in points]
    best = frontier([*dense, *places], metric.higher_is_better)
    parts.append(path([(x(speed), y(value)) for speed, value in best], "curve c1"))
    marks = [(*place, "dense", False) for place in dense]
    marks += [
        (p.speedup, p.accuracy * factor, plain(p.label) or _removed(p.ratio), p.chosen)
        for p in points
    ]
    taken = [(x(speed), y(value), x(speed), y(value)) for speed, value, _, _ in marks]
    for speed, value, label, chosen in marks:
        px, py = x(speed), y(value)
        css = "dot c1" if (speed, value) in best else "dot other"
        hint = f"{label}: {number(value)}, {times(speed)} the dense speed"
        if chosen:
            parts.append(circle(px, py, 9, "ring"))
        parts.append(circle(px, py, 4.5, css, hint))
        place = _free(px, py, _short(label, 16), taken, x, y)
        taken.append(place)
        parts.append(text(place[0], place[3] - 4, _short(label, 16), "label"))
    shown = [p for p in points if p.chosen]
    description = f"{plain(metric.name)} against measured speed-up for {len(points)} runs."
    legend = [("stroke c1", "not beaten by another run"), ("stroke reference", "dense speed")]
    legend += [("ring", "this report's model")] if shown else []
    rows = tuple(
        (
            plain(p.label) or _removed(p.ratio),
            metric_value(p.accuracy, metric),
            times(p.speedup),
        )
        for p in points
    )
    return Figure(
        drawing(WIDTH, HEIGHT, description, parts),
        description[:1].upper() + description[1:],
        tuple(legend),
        ("Removed", plain(metric.name), "Speed-up"),
        rows,
    )


_Box = tuple[float, float, float, float]


def _free(px: float, py: float, label: str, taken: Sequence[_Box], x: Scale, y: Scale) -> _Box:
    """Find room for a label near a dot: inside the axes and, if it can be, over nothing else."""
    width, height = 8.5 * len(label), 17.0
    boxes = [
        (px + dx, py + dy, px + dx + width, py + dy + height)
        for dy in (-24.0, 7.0, -8.5, -42.0, 25.0)
        for dx in (8.0, -8.0 - width, -width / 2)
    ]
    inside = [
        box for box in boxes if x.start <= box[0] and box[2] <= x.end + RIGHT and box[3] <= y.start
    ]
    free = [box for box in inside if not any(_meet(box, other) for other in taken)]
    return (free or inside or boxes)[0]


def _meet(one: _Box, two: _Box) -> bool:
    return one[0] <= two[2] and two[0] <= one[2] and one[1] <= two[3] and two[1] <= one[3]


def frontier(
    points: Sequence[tuple[float, float]], higher_is_better: bool = True
) -> list[tuple[float, float]]:
    """Keep the (speed-up, metric) points that no other beats in one and equals in the other.

    Example:
        >>> frontier([(1.0, 0.9), (2.0, 0.8), (1.5, 0.7)])
        [(1.0, 0.9), (2.0, 0.8)]
    """
    sign = 1.0 if higher_is_better else -1.0
    best: list[tuple[float, float]] = []
    for speed, value in sorted(set(points), key=lambda point: (-point[0], -sign * point[1])):
        if not best or sign * value > sign * best[-1][1]:
            best.append((speed, value))
    return best[::-1]


def history(steps: Sequence[Step]) -> Figure | None:
    """Draw the loss of recovery; a long history also gets its moving mean. None without a loss."""
    known = [(step.step, step.loss) for step in steps if step.loss is not None]
    if not known:
        return None
    x = spanning([step for step, _ in known], LEFT, WIDTH - RIGHT, 0.01)
    y = spanning([loss for _, loss in known], HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, "step", "loss")
    window = len(known) // 60 if len(known) > 200 else 1
    raw = "curve faint" if window > 1 else "curve c1"
    drawn = thinned(known, 800)
    parts.append(path([(x(step), y(loss)) for step, loss in drawn], raw))
    if len(known) == 1:
        parts.append(circle(x(known[0][0]), y(known[0][1]), 4.5, "dot c1"))
    smooth = [
        (
            sum(step for step, _ in known[i : i + window]) / len(known[i : i + window]),
            sum(loss for _, loss in known[i : i + window]) / len(known[i : i + window]),
        )
        for i in range(0, len(known), window)
    ]
    if window > 1:
        parts.append(path([(x(step), y(loss)) for step, loss in smooth], "curve c1"))
    lost = len(steps) - len(known)
    (first, early), (last, late) = smooth[0], smooth[-1]
    description = (
        f"Loss during recovery, {len(known)} values; {number(early)} at step {first:.0f} and "
        f"{number(late)} at step {last:.0f}."
    )
    if lost:
        were = "value was" if lost == 1 else "values were"
        description += f" {lost} {were} not finite and not drawn."
    legend = (("stroke faint", "each value"), ("stroke c1", f"mean of {window}"))
    return Figure(drawing(WIDTH, HEIGHT, description, parts), description, legend * (window > 1))


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Keep at most ``most`` points: of each stretch the lowest and the highest, so spikes stay."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))  # two of each are kept
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        extremes = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(extremes)
    return kept


def _removed(ratio: float) -> str:
    return f"−{ratio * 100:.3g} %"


def _short(name: str, most: int) -> str:
    """Cut a name that would run out of the picture; it is whole in the table and the tooltip."""
    name = plain(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"
