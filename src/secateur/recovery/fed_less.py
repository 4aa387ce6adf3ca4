"""Which layers of a pruned model get fewer inputs than in the dense one."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.recovery.kept import kept_indices
from secateur.recovery.moments import reconstructible, weight_rows


def fed_less(
    model: nn.Module, dense: nn.Module, plan: Any = None, globs: Sequence[str] | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """The layers of the pruned model that have fewer inputs than in the dense one.

    Args:
        model: The pruned model.
        dense: The dense one, with the same module names.
        plan: What was removed.
        globs: Of the layers to look at; None for all.

    Returns:
        Layer -> which of the dense layer's outputs and inputs it still has; and layers that are
        left alone, with the reason.

    Raises:
        ConfigError: No layer matches the globs.
    """
    originals = dict(dense.named_modules())
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    places: dict[str, tuple[Tensor, Tensor]] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        original = originals.get(name)
        if globs is not None and not any(fnmatchcase(name, glob) for glob in globs):
            continue
        if original is None or not isinstance(getattr(module, "weight", None), Tensor):
            continue
        reason = reconstructible(module, original)
        if reason is not None:
            if reason:
                skipped[name] = reason
            continue
        new, old = weight_rows(module), weight_rows(original)
        if new.shape[1] >= old.shape[1]:
            continue
        if owners.get(id(module.weight), 0) != 1:
            skipped[name] = "its weight is shared with another layer or computed from others"
            continue
        if new is module.weight:
            kept = kept_indices(old, new, plan, f"{name}.weight")
        else:  # stored as (in, out)
            swapped = kept_indices(original.weight, module.weight, plan, f"{name}.weight")
            kept = swapped and (swapped[1], swapped[0])
        if kept is None:
            skipped[name] = "its outputs could not be matched with the dense layer's: give the plan"
        else:
            places[name] = kept
    if globs is not None and not places and not skipped:
        raise ConfigError(f"layers={list(globs)}: no layer that lost inputs matches.")
    return places, skipped
