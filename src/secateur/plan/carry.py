"""Let a pruned Hugging Face model carry the stock config of its shape.

Its own ``save_pretrained`` writes the config that it holds, and caches are laid out by it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from secateur.graph.forward import named_tensors
from secateur.plan.assign import is_passing
from secateur.plan.gaps import configs, is_config
from secateur.plan.plan import Plan
from secateur.plan.stock import (
    NotStock,
    distance_of,
    fields,
    find_config,
    inputs_of,
    is_pretrained,
    outputs_of,
    stock_class,
    tolerance,
)


def carry(model: nn.Module, plan: Plan, like: Any = None) -> str | None:
    """Let a pruned model of transformers carry the stock config of its shape, where there is one.

    The model's own ``save_pretrained`` then writes a folder that plain ``from_pretrained`` loads.
    The config that the model had, which others may share, is left as it was.

    Args:
        model: What the plan made, possibly trained since.
        plan: The plan.
        like: The same model, which carries what was found for it; default: a config is looked for.

    Returns:
        Where there is none: what a user should know, and the model keeps the config it has.
    """
    if not is_pretrained(model):
        return None
    state = {n: t for n, t in named_tensors(model).items() if not is_passing(model, n)}
    try:
        config = like.config if like is not None else find_config(model, plan, state)
        _adopt(model, config, inputs_of(plan))
    except NotStock as why:
        return (
            "the model's config still tells the sizes before pruning, so its own save_pretrained "
            "writes a folder that from_pretrained cannot load: use save of secateur and sec.load "
            f"(no stock config describes this shape: {why})"
        )
    return None


def _adopt(model: nn.Module, config: Any, inputs: Any) -> None:
    """Set what another config says otherwise, in copies of the configs that the modules hold."""
    reference = outputs_of(model, inputs)
    stale = _stale(model, config)
    before = {
        (module, key): value
        for module in model.modules()
        for key, value in vars(module).items()
        if is_config(value) or (module, key) in stale
    }
    copies: dict[int, Any] = {}
    for (module, key), value in before.items():
        new = stale[module, key] if (module, key) in stale else copy.deepcopy(value, copies)
        setattr(module, key, new)
    old = dict(fields(model.config))
    for (path, name), value in fields(config):
        if value == old.get((path, name)):
            continue
        for holder in _holders(model, path, name):
            setattr(holder, name, value)
    try:
        right = distance_of(reference, outputs_of(model, inputs)) <= tolerance(model)
    except Exception:  # noqa: BLE001 - a forward may refuse any config
        right = False
    if not right:
        for (module, key), value in before.items():
            setattr(module, key, value)
        raise NotStock("its forward reads sizes from its config that mean something else there")


def _stale(model: nn.Module, config: Any) -> dict[tuple[nn.Module, str], Any]:
    """Numbers that modules took from the old config, and what they take from the new one.

    Those that the example inputs ask for are right already; others are read in generation, say.
    """
    kind = stock_class(model)
    with torch.device("meta"):
        was, now = kind(copy.deepcopy(model.config)), kind(copy.deepcopy(config))
    theirs, ours = dict(was.named_modules()), dict(model.named_modules())
    return {
        (ours[path], key): value
        for path, module in now.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float)
        and path in ours
        and value != (old := vars(theirs[path]).get(key))
        and vars(ours[path]).get(key) == old
    }


def _holders(model: nn.Module, path: tuple[str, ...], name: str) -> list[Any]:
    """The config at a path of the model's, and copies of it that modules hold for themselves."""
    own = [model.config]
    for part in path:
        own.append(getattr(own[-1], part))
    target, inside = own[-1], {id(c) for c in _nested(model.config)}
    return [target] + [
        c
        for c in configs(model)
        if id(c) not in inside
        and type(c) is type(target)
        and getattr(c, name, None) == getattr(target, name, None)
    ]


def _nested(config: Any) -> Iterator[Any]:
    """A config and all those in it."""
    yield config
    for value in vars(config).values():
        if is_config(value):
            yield from _nested(value)
