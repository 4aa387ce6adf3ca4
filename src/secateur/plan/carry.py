"""Let a pruned Hugging Face model carry the stock config of its shape.

Its own ``save_pretrained`` writes the config that it holds, and caches are laid out by it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.forward import named_tensors
from secateur.plan.alike import distance_of, outputs_of, tolerance
from secateur.plan.assign import is_passing
from secateur.plan.gaps import configs, is_config
from secateur.plan.plan import Plan
from secateur.plan.stock import (
    NotStock,
    fields,
    find_config,
    inputs_of,
    is_pretrained,
    stock_class,
)


def carry(model: nn.Module, plan: Plan, like: Any = None) -> str | None:
    """Let every pruned model of transformers carry the stock config of its shape, if there is one.

    The model's own ``save_pretrained`` then writes a folder that plain ``from_pretrained`` loads,
    also where it is a part of a module of the user's. The config that it had, which others may
    share, is left as it was.

    Args:
        model: What the plan made, possibly trained since.
        plan: The plan.
        like: The same model, which carries what was found for it; default: a config is looked for.

    Returns:
        Where there is none: what a user should know, and the model keeps the config it has.
    """
    notes = []
    paths = pretrained_in(model)
    around = [m for n, m in model.named_modules() if not any(_is_in(n, path) for path in paths)]
    for path in paths:
        inner = model.get_submodule(path)
        part = _part(plan, path)
        if not part.touched and not part.dropped:
            continue
        state = {n: t for n, t in named_tensors(inner).items() if not is_passing(inner, n)}
        try:
            inputs = inputs_of(plan)
            forward = partial(_outputs_with, model, path, inputs)
            if like is not None:
                config = like.get_submodule(path).config
            else:
                config = find_config(inner, part, state, forward)
            _adopt(inner, config, around, partial(outputs_of, model, inputs))
        except NotStock as why:
            whose = f"the config of {path}" if path else "the model's config"
            notes.append(
                f"{whose} still tells the sizes before pruning, so its own save_pretrained writes "
                "a folder that from_pretrained cannot load: use save of secateur and sec.load "
                f"(no stock config describes this shape: {why})"
            )
    return "; ".join(notes) or None


def pretrained_in(model: nn.Module) -> list[str]:
    """Names of the models of transformers that a model is or holds, the outermost ones."""
    found: list[str] = []
    for name, module in model.named_modules():
        if is_pretrained(module) and not any(_is_in(name, outer) for outer in found):
            found.append(name)
    return found


def _is_in(name: str, path: str) -> bool:
    return f"{name}.".startswith(f"{path}.".lstrip("."))


def _part(plan: Plan, path: str) -> Plan:
    """What a plan says about one module and those in it, by their names there."""
    start = f"{path}.".lstrip(".")

    def here(table: Mapping[str, Any]) -> dict[str, Any]:
        return {n.removeprefix(start): v for n, v in table.items() if n.startswith(start)}

    def those(items: Any) -> tuple[Any, ...]:
        return tuple(
            replace(item, module=f"{item.module}.".removeprefix(start).rstrip("."))
            for item in items
            if f"{item.module}.".startswith(start)
        )

    return replace(
        plan,
        shapes=here(plan.shapes),
        axes=here(plan.axes),
        edits=those(plan.edits or ()),
        dropped=those(plan.dropped),
    )


def _outputs_with(model: nn.Module, path: str, inputs: Any, inner: nn.Module) -> list[Tensor]:
    """What the model gives with another module in one place, which it is put back into."""
    if not path:
        return outputs_of(inner, inputs)
    before = model.get_submodule(path)
    model.set_submodule(path, inner)
    try:
        return outputs_of(model, inputs)
    finally:
        model.set_submodule(path, before)


def _adopt(
    model: nn.Module,
    config: Any,
    around: Sequence[nn.Module],
    forward: Callable[[], list[Tensor]],
) -> None:
    """Set what another config says otherwise, in copies of the configs that the modules hold.

    Modules around the model that hold its very config get the copy too.
    """
    reference = forward()
    stale = _stale(model, config)
    before = {
        (module, key): value
        for module in model.modules()
        for key, value in vars(module).items()
        if is_config(value) or (module, key) in stale
    } | {(m, k): v for m in around for k, v in vars(m).items() if v is model.config}
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
        right = distance_of(reference, forward()) <= tolerance(model)
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
