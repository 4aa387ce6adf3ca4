"""What a forward keeps in its modules for the next one: tables computed from the weights.

They are made of mere attributes (``self.bias_cache[device] = ...``), so surgery does not reach
them, and they would outlive the weights that they were computed from. A module of the pruned model
forgets them; they are made anew when they are asked for.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.graph.forward import named_tensors, tensors_in, uncopied

log = logging.getLogger(__name__)
Kept = Mapping[str, Mapping[str, Any]]
_ABSENT = "absent"
_PLAIN = (type(None), bool, int, float, str)
_OF_TORCH = frozenset(vars(nn.Module()))


def kept_by_forward(before: nn.Module, after: nn.Module) -> dict[str, dict[str, Any]]:
    """The modules that a forward left tensors in, with what else it changed there, as it was.

    Args:
        before: The model.
        after: A copy of it, on which the forward ran.

    Returns:
        Module -> attribute -> (its value before), or ``"absent"`` where there was none.
    """
    originals = dict(before.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for name, module in after.named_modules():
        old, new = vars(originals.get(name, module)), vars(module)
        own = [k for k in new if k not in _OF_TORCH]
        held = [k for k in own if _tensors(new[k]) and not _tensors(old.get(k))]
        if held:
            numbers = [
                k for k in own if type(new[k]) in _PLAIN and (k not in old or old[k] != new[k])
            ]
            found[name] = {
                k: (copy.deepcopy(old[k]),) if k in old else _ABSENT for k in (*held, *numbers)
            }
    return found


def kept_already(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The same of a model that has run before, as far as its own ``train()`` drops what is kept.

    Models that keep tables of their weights say there that training makes them stale. It is asked
    on a copy without data, since some change their weights in it.
    """
    if all(type(m).train is nn.Module.train for m in model.modules()):
        return {}
    empty: dict[int, Any] = {}
    for t in named_tensors(model).values():
        hollow = t.detach().to("meta")
        empty[id(t)] = nn.Parameter(hollow, False) if isinstance(t, nn.Parameter) else hollow
    try:
        double = copy.deepcopy(model, empty | uncopied(model))
        double.train()
    except Exception as error:  # noqa: BLE001 - any line of the user's code may raise
        log.info("what the model keeps stays unknown: %s", error)
        return {}
    return kept_by_forward(double, model)


def forget(model: nn.Module, kept: Kept) -> nn.Module:
    """The model, changed: what forwards have kept in these modules since is gone."""
    modules = dict(model.named_modules()) if kept else {}
    for name in kept.keys() & modules.keys():
        module, before = modules[name], kept[name]
        if not any(_tensors(vars(module).get(k)) for k in before):
            continue
        for attribute, value in before.items():
            if value != _ABSENT:
                setattr(module, attribute, copy.deepcopy(value[0]))
            elif attribute in vars(module):
                delattr(module, attribute)
    return model


def _tensors(value: Any) -> list[Tensor]:
    held = type(value) not in _PLAIN and not isinstance(value, nn.Module)
    return tensors_in(value) if held else []
