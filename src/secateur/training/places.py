"""Where the forward of a model reads its parameters, which may be outside of what holds them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

Place = tuple[str, str, str]  # parameter; what holds it, below the module that reads it; leaf


def places(model: nn.Module, parameters: Iterable[str]) -> dict[str, list[Place]]:
    """By the name of a module, what its forward reads; a tied parameter is read in several.

    Example:
        >>> places(nn.Sequential(nn.Linear(2, 2)), ["0.weight"])
        {'0': [('0.weight', '', 'weight')]}
    """
    gated = set(parameters)
    modules = dict(model.named_modules(remove_duplicate=False))
    named = list(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, p in named:
        if name in gated:
            first.setdefault(id(p), name)
    found: dict[str, list[Place]] = {}
    seen: set[tuple[int, str, str]] = set()
    for name, p in named:
        if id(p) not in first:
            continue
        owner, _, leaf = name.rpartition(".")
        parent, _, child = owner.rpartition(".")
        at = [(owner, "")]
        if child and isinstance(modules[parent], nn.MultiheadAttention):
            at.append((parent, child))  # it reads out_proj.weight and never calls out_proj
        for module, below in at:
            if (place := (id(modules[module]), below, leaf)) not in seen:
                seen.add(place)
                called = name if name in gated else first[id(p)]
                found.setdefault(module, []).append((called, below, leaf))
    return found
