"""From scores of elements, filters and norms to one score a unit, over all coupled tensors.

Nothing here loops over units: every sum over the positions of a unit is one ``index_add``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.criteria import Criterion
from secateur.criteria.registry import in_parts
from secateur.engine.statistics import Statistics, Stats
from secateur.errors import ConfigError, DataError
from secateur.granularity.sums import axis_sums, unit_sum, unit_sums
from secateur.graph import Graph, Member, UnitClass
from secateur.graph.classes import module_of
from secateur.names import unknown

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda s: s.sum(0),
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.amax(0),
    "min": lambda s: s.amin(0),
    "prod": lambda s: s.prod(0),
    "first": lambda s: s[0],
}
_TINY = 1e-12


def lamp_scale(scores: Tensor) -> Tensor:
    """Each score over the sum of all that are at least as large (arXiv:2010.07611); the last is 1.

    Example:
        >>> lamp_scale(torch.tensor([1.0, 4.0, 9.0]))
        tensor([0.0714, 0.3077, 1.0000])
    """
    flat = scores.flatten()
    order = flat.argsort(stable=True)
    above = flat[order].flip(0).double().cumsum(0).flip(0)
    scaled = torch.empty_like(flat)
    scaled[order] = (flat[order].double() / above.clamp(min=_TINY)).float()
    return scaled.view_as(scores)


def relative(scores: Tensor) -> Tensor:
    r"""DepGraph's group-relative score $N I_k / \sum \mathrm{top}_N I$, N half of the units.

    A class whose better half is little better than the rest scores near 1 throughout, so it
    competes as one in which much can go (arXiv:2301.12900).

    Example:
        >>> relative(torch.tensor([1.0, 3.0, 1.0, 5.0]))
        tensor([0.2500, 0.7500, 0.2500, 1.2500])
    """
    n = max(1, scores.numel() // 2)
    return scores * n / scores.flatten().topk(n).values.sum().clamp(min=_TINY)


NORMALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "sum": lambda s: s / s.abs().sum().clamp(min=_TINY),
    "mean": lambda s: s / s.abs().mean().clamp(min=_TINY),
    "max": lambda s: s / s.abs().amax().clamp(min=_TINY),
    "std": lambda s: s / s.std(correction=0).clamp(min=_TINY),
    "gaussian": lambda s: (s - s.mean()) / s.std(correction=0).clamp(min=_TINY),
    "lamp": lamp_scale,
    "relative": relative,
    "size": lambda s: s,  # and then divided by the weights of a unit
}


def unit_rows(tensor: Tensor, member: Member, size: int) -> Tensor:
    """The elements of each unit as a row, zero-filled if uneven: (size, elements of a unit)."""
    rows, unit = positions(in_parts(tensor.detach()).float(), member, size)
    unit = unit.to(rows.device)
    at = (unit >= 0).nonzero().squeeze(1)
    at = at[unit[at].argsort(stable=True)]
    owner = unit[at]
    first = torch.searchsorted(owner, torch.arange(size, device=owner.device))
    nth = torch.arange(len(at), device=owner.device) - first[owner]
    each = int(nth.max()) + 1 if len(nth) else 0
    out = rows.new_zeros(size, each, rows.shape[1])
    out[owner, nth] = rows[at]
    return out.flatten(1)


def joined(c: UnitClass) -> list[Member]:
    """The members of a class; an axis that it runs along twice (rotary halves) counts as one."""
    found: dict[tuple[str, int], list[Member]] = {}
    for m in c.members:
        same = found.setdefault((m.tensor, m.axis), [])
        if same and not ((same[0].unit >= 0) & (m.unit >= 0)).any():
            same[0] = replace(same[0], unit=torch.maximum(same[0].unit, m.unit))
        else:
            same.append(m)
    return [m for members in found.values() for m in members]


def split(graph: Graph, c: UnitClass) -> UnitClass:
    """A class chosen anew for every unit of another, as one class of all these pairs.

    Unit u of the other's unit b is number b * size + u. Where the other class lies along another
    axis, the member keeps its units, and ``positions`` numbers the pairs.
    """
    assert c.over is not None
    members = []
    for m in c.members:
        if m.over is not None and m.over[0] == m.axis:
            base = m.over[1]
            unit = torch.where((m.unit >= 0) & (base >= 0), base * c.size + m.unit, -1)
            members.append(replace(m, unit=unit, over=None))
        elif m.over is not None:
            members.append(m)
    return replace(c, size=graph.classes[c.over].size * c.size, members=tuple(members), over=None)


def _alike(c: UnitClass) -> UnitClass:
    """A class whose units go everywhere or nowhere."""
    return replace(c, members=tuple(replace(m, over=None) for m in c.members)) if c.over else c


def positions(tensor: Tensor, m: Member, size: int) -> tuple[Tensor, Tensor]:
    """A tensor as rows, one a position, and the unit of each; pairs of positions of two axes."""
    if m.over is None:
        return tensor.movedim(m.axis, 0).reshape(tensor.shape[m.axis], -1), m.unit
    other, base = m.over
    each = size // (int(base.max()) + 1)
    unit = torch.where(
        (m.unit[:, None] >= 0) & (base[None] >= 0), base[None] * each + m.unit[:, None], -1
    )
    rows = tensor.movedim((m.axis, other), (0, 1))
    return rows.reshape(unit.numel(), -1), unit.flatten()


def weights_each(graph: Graph, c: UnitClass) -> float:
    """How many weights go with a unit of a class, what reads it included; at least one."""
    own = dict(graph.model.named_parameters())
    total = sum(
        own[m.tensor].numel() * float((m.unit >= 0).double().mean())
        for m in joined(c)
        if m.tensor in own
    )
    return max(total / c.size, 1.0)


def is_bias(tensor: str, shape: tuple[int, ...]) -> bool:
    """True for one-dimensional parameters that shift, as opposed to scale."""
    leaf = tensor.rpartition(".")[2]
    return len(shape) == 1 and ("bias" in leaf or leaf == "beta")


def score(
    graph: Graph,
    classes: Iterable[UnitClass],
    criterion: Criterion,
    statistics: Statistics | None = None,
    *,
    reduction: str | None = None,
    normalizer: str | None = None,
    fibred: bool = False,
) -> dict[str, Tensor]:
    """Score every unit of the given classes.

    Args:
        graph: The graph, whose model holds the weights.
        classes: What to score.
        criterion: How.
        statistics: What the criterion needs, as ``engine.statistics.collect`` gathers it.
        reduction: How coupled tensors become one score; default: the criterion's own.
        normalizer: How the scores of a class are scaled; default: the criterion's own.
        fibred: Score a class that may be chosen anew for every unit of another (a head's own
            dimensions) in each of these: shape (units of the other, size).

    Returns:
        Class name -> scores of shape (size,), float32 on the CPU, higher = keep. A class of which
        the criterion knows nothing (as a linear layer under ``bn_scale``) is left out.

    Raises:
        ConfigError: An unknown reduction or normalizer.
        DataError: Weights or statistics are not finite, or the weights are not loaded.
    """
    reduction = reduction or criterion.reduction
    normalizer = normalizer or criterion.normalizer
    for what, name, known in (
        ("reduction", reduction, REDUCTIONS),
        ("normalizer", normalizer, NORMALIZERS),
    ):
        if name not in [*known]:
            raise ConfigError(unknown(what, name, known))
    classes = list(classes)
    whole = [split(graph, c) if fibred and c.over else _alike(c) for c in classes]
    statistics = statistics or Statistics()
    with torch.no_grad():
        parts = _SCORERS[criterion.level](graph, whole, criterion, statistics)
        scores = {}
        for c in classes:
            if not parts[c.name]:
                continue
            together = REDUCTIONS[reduction](torch.stack([p.float().cpu() for p in parts[c.name]]))
            if not together.isfinite().all():
                raise DataError(_not_finite(graph, c, criterion))
            scores[c.name] = NORMALIZERS[normalizer](together)
            if normalizer == "size":
                scores[c.name] = together / weights_each(graph, c)
            if fibred and c.over:
                scores[c.name] = scores[c.name].view(-1, c.size)
    return scores


Parts = dict[str, list[Tensor]]


def _elements(
    graph: Graph, classes: list[UnitClass], criterion: Criterion, statistics: Statistics
) -> Parts:
    """Each tensor is scored once, summed along each of its axes, and the sums go to the units."""
    parameters = dict(graph.model.named_parameters())
    members = {c.name: joined(c) for c in classes}
    touched: dict[str, list[tuple[UnitClass, int]]] = {}
    for c in classes:
        for k, m in enumerate(members[c.name]):
            if m.tensor in parameters and (
                criterion.biases or not is_bias(m.tensor, graph.shapes[m.tensor])
            ):
                touched.setdefault(m.tensor, []).append((c, k))
    found: dict[tuple[str, int], Tensor] = {}
    for name, uses in touched.items():
        if criterion.needs and name not in statistics.tensors:
            continue
        weight = _values(parameters[name], name).detach()
        stats = statistics.tensors.get(name, Stats(name))
        along: dict[int, list[tuple[UnitClass, int]]] = {}
        for c, k in uses:
            m = members[c.name][k]
            if m.over is None:
                along.setdefault(m.axis, []).append((c, k))
            else:
                rows, unit = positions(criterion(weight, stats), m, c.size)
                lines = rows.sum(1)
                found[c.name, k] = unit_sum(
                    lines.abs() if criterion.vectors else lines, unit, c.size
                )
        for axis, values in axis_sums(criterion, weight, stats, list(along)).items():
            lines = values.abs() if criterion.vectors else values
            units = [members[c.name][k].unit for c, k in along[axis]]
            sums = unit_sums(lines, units, [c.size for c, _ in along[axis]])
            found |= {(c.name, k): v for (c, k), v in zip(along[axis], sums, strict=True)}
    return {
        c.name: [found[c.name, k] for k in range(len(members[c.name])) if (c.name, k) in found]
        for c in classes
    }


def _filters(
    graph: Graph, classes: list[UnitClass], criterion: Criterion, statistics: Statistics
) -> Parts:
    """Units are compared inside each layer that makes them."""
    parameters = dict(graph.model.named_parameters())
    parts: Parts = {}
    for c in classes:
        parts[c.name] = [
            criterion(
                unit_rows(_values(parameters[m.tensor], m.tensor), m, c.size), Stats(m.tensor)
            )
            for m in joined(c)
            if m.produces and m.tensor in parameters and len(graph.shapes[m.tensor]) > 1
        ]
    return parts


def _inputs(
    graph: Graph, classes: list[UnitClass], criterion: Criterion, statistics: Statistics
) -> Parts:
    """Each layer that takes a class in is scored input by input; a unit has the mean of its own."""
    parameters = dict(graph.model.named_parameters())
    modules = dict(graph.model.named_modules())
    scored: dict[tuple[str, int], Tensor] = {}
    parts: Parts = {}
    for c in classes:
        parts[c.name] = []
        for m in joined(c):
            known = statistics.tensors.get(m.tensor)
            if m.produces or m.over is not None or len(graph.shapes[m.tensor]) < 2:
                continue
            if m.tensor not in parameters or any(n not in (known or ()) for n in criterion.needs):
                continue
            if getattr(modules[module_of(m.tensor)], "groups", 1) != 1:
                continue  # its weight has the inputs of one group, its input those of all
            if (m.tensor, m.axis) not in scored:
                weight = _values(parameters[m.tensor], m.tensor).detach().float()
                matrix = weight.movedim(m.axis, 0).flatten(1).T
                scored[m.tensor, m.axis] = criterion(matrix, known or Stats(m.tensor))
            scores = scored[m.tensor, m.axis]
            number = unit_sum(torch.ones_like(scores), m.unit, c.size).clamp(min=1)
            parts[c.name].append(unit_sum(scores, m.unit, c.size) / number)
    return parts


def _norms(
    graph: Graph, classes: list[UnitClass], criterion: Criterion, statistics: Statistics
) -> Parts:
    """Batch norms with a scale; a unit with several channels gets their sum."""
    modules = dict(graph.model.named_modules())
    parts: Parts = {}
    for c in classes:
        parts[c.name] = []
        for m in c.members:
            module = modules.get(module_of(m.tensor))
            if is_norm(module) and m.tensor.endswith("weight"):
                weight = _values(module.weight, m.tensor)  # type: ignore[union-attr]
                bias = module.bias  # type: ignore[union-attr]
                shift = torch.zeros_like(weight) if bias is None else bias.detach().float()
                scores = criterion(weight.detach(), Stats(m.tensor, shift=shift))
                parts[c.name].append(unit_sum(scores, m.unit, c.size))
    return parts


def is_norm(module: nn.Module | None) -> bool:
    """True for a batch norm with a learnt scale."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and getattr(module, "weight", None) is not None
    )


def _classes(
    graph: Graph, classes: list[UnitClass], criterion: Criterion, statistics: Statistics
) -> Parts:
    """Straight from what was measured of the class."""
    parts: Parts = {}
    for c in classes:
        measured = statistics.classes.get(c.name)
        if criterion.needs and (
            measured is None or any(need not in measured for need in criterion.needs)
        ):
            parts[c.name] = []
        else:
            scores = criterion(None, measured or Stats(c.name, size=c.size))
            # What was measured of a class holds for it in every unit of another.
            parts[c.name] = [scores.repeat(c.size // len(scores))]
    return parts


_SCORERS = {
    "element": _elements,
    "filter": _filters,
    "input": _inputs,
    "norm": _norms,
    "class": _classes,
}


def _values(tensor: Tensor, name: str) -> Tensor:
    if tensor.device.type == "meta":
        raise DataError(
            f"{name} is on the meta device and holds no values: load the weights before planning, "
            'or use criterion="random"'
        )
    return tensor


def _not_finite(graph: Graph, c: UnitClass, criterion: Criterion) -> str:
    parameters = dict(graph.model.named_parameters())
    for m in c.members:
        if m.tensor in parameters and not parameters[m.tensor].isfinite().all():
            return (
                f"{m.tensor} holds NaN or infinity, so class {c.name} cannot be scored: "
                "repair the weights (was training stable?) or leave the class out with ignore="
            )
    return (
        f"criterion {criterion.name} gave NaN or infinity for class {c.name}, whose weights are "
        "finite: look at the data, or use another criterion"
    )
