"""Fibred classes: where the choice of units may differ from head to head, or group to group.

Class f may be chosen anew for every unit of class b if f never appears without b: in every tensor
of the forward, each occurrence of f lies in a product with b along the same axis, or b lies along
exactly one other axis. Then no operator ever brings the f of one b together with the f of another,
and any choice with the same number everywhere leaves all tensors rectangular.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from secateur.graph.classes import Axis, classes_in

Tensor = tuple[Axis, ...]


def fibres(parameters: Iterable[Tensor], tensors: Iterable[Tensor]) -> dict[str, str]:
    """Class -> the class over which it may be chosen anew.

    Args:
        parameters: Frozen axes of every parameter and buffer: candidates are read off these.
        tensors: Frozen axes of everything that operators read or made.
    """
    candidates: dict[str, dict[str, None]] = {}
    parameters = list(parameters)
    for axes in parameters:
        for axis in axes:
            for outer, inner in _nested(axis):
                candidates.setdefault(inner, {})[outer] = None
    if not candidates:
        return {}
    bases = {b for outers in candidates.values() for b in outers}
    for axes in {*tensors, *parameters}:
        found = {c for axis in axes for c in classes_in(axis)}
        for b in found & bases:
            if not _once(axes, b):
                bases.discard(b)
        for f in found & candidates.keys():
            for b in list(candidates[f]):
                if not _goes_with(axes, f, b):
                    del candidates[f][b]
    result: dict[str, str] = {}
    for f, outers in candidates.items():
        free = [b for b in outers if b in bases and b not in result]
        if free and f not in result.values():
            result[f] = free[0]
    return result


def _nested(axis: Axis) -> Iterator[tuple[str, str]]:
    """(outer, inner) for every two classes one of which lies inside the other along an axis."""
    match axis:
        case ("prod", *parts):
            for k, part in enumerate(parts):
                yield from _nested(part)
                if isinstance(part, str):
                    for later in parts[k + 1 :]:
                        for inner in classes_in(later):
                            yield part, inner
        case ("sum", *parts):
            for part in parts:
                yield from _nested(part)


def _once(axes: Tensor, b: str) -> bool:
    """True if no position of the tensor belongs to two units of b."""
    return sum(_depth(axis, b) for axis in axes) <= 1


def _depth(axis: Axis, b: str) -> int:
    match axis:
        case str():
            return int(axis == b)
        case ("prod", *parts):
            return sum(_depth(p, b) for p in parts)
        case ("sum", *parts):
            return max(_depth(p, b) for p in parts)
        case ("take", base, _):
            return 2 * _depth(base, b)  # reordered: nothing is said about its inner structure
    return 0


def _goes_with(axes: Tensor, f: str, b: str) -> bool:
    """True if every occurrence of f in the tensor has its b."""
    holding = [k for k, axis in enumerate(axes) if f in classes_in(axis)]
    if len(holding) > 1 or _depth(axes[holding[0]], f) > 1:
        return False
    axis = axes[holding[0]]
    if _under(axis, f, b):
        return True
    others = [a for k, a in enumerate(axes) if k != holding[0] and b in classes_in(a)]
    return len(others) == 1 and b not in classes_in(axis) and _everywhere(others[0], b)


def _under(axis: Axis, f: str, b: str) -> bool:
    """True if each occurrence of f lies in a product that has b as a factor before it.

    What stays of f inside of b is in order of its own positions. With b the inner axis, the pruned
    tensor would be in order of their ranks, and each rank be of another position for each b.
    """
    match axis:
        case str():
            return axis != f
        case ("prod", *parts):
            outer = parts.index(b) if b in parts else len(parts)
            return all(_under(p, f, b) for p in parts[:outer])
        case ("sum", *parts):
            return all(_under(p, f, b) for p in parts)
        case ("take", base, _):
            return f not in classes_in(base)
    return True


def _everywhere(axis: Axis, b: str) -> bool:
    """True if every position of the axis belongs to a unit of b."""
    match axis:
        case str():
            return axis == b
        case ("prod", *parts):
            return any(_everywhere(p, b) for p in parts)
    return False
