"""The norms of residual streams: what they are given, who reads them, and folding their scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import run
from secateur.errors import PlanError
from secateur.graph import UnitClass
from secateur.measure.calling import evaluating, unfused


def norms_of(model: nn.Module, classes: Sequence[UnitClass]) -> dict[str, str]:
    """Module of each norm of some residual streams -> the class that it normalises.

    Raises:
        PlanError: A stream that no norm with a scale and nothing else reads.
    """
    found: dict[str, str] = {}
    for c in classes:
        for m in c.members:
            name = m.tensor.rpartition(".")[0]
            own = dict(model.get_submodule(name).named_parameters(recurse=False))
            if own.keys() == {"weight"} and own["weight"].dim() == 1:
                found[name] = c.name
    missing = [c.name for c in classes if c.name not in found.values()]
    if missing:
        raise PlanError(f"no norm was found that reads {missing[0]}, so it cannot be rotated")
    return found


def watch(
    model: nn.Module,
    classes: Sequence[UnitClass],
    of_norm: Mapping[str, str],
    batches: Iterable[Any],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gram matrices of what the norms of each class are given, and which norm a module reads.

    Tokens that an attention mask hides do not count.
    """
    grams: dict[str, Tensor] = {}
    said: dict[int, tuple[str, Tensor]] = {}  # by the memory of a norm's output, which is held
    takes: dict[str, str] = {}
    masks: list[Tensor | None] = [None]

    def normed(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            x, mask = args[0].detach(), masks[0]
            kept = x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x
            rows = kept.reshape(-1, x.shape[-1]).double()
            grams[of_norm[name]] = grams.get(of_norm[name], 0) + rows.T @ rows
            said[output.untyped_storage().data_ptr()] = (name, output)

        return hook

    def read(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            for t in (*args, *kwargs.values()):
                if isinstance(t, Tensor) and (found := said.get(t.untyped_storage().data_ptr())):
                    takes[name] = found[0]

        return hook

    readers = {m.tensor.rpartition(".")[0] for c in classes for m in c.members
               if not m.produces}  # fmt: skip
    with ExitStack() as stack, evaluating(model), unfused():
        for name in of_norm:
            handle = model.get_submodule(name).register_forward_hook(normed(name))
            stack.callback(handle.remove)
        for name in readers - of_norm.keys():
            module = model.get_submodule(name)
            pre = module.register_forward_pre_hook(read(name), with_kwargs=True)
            stack.callback(pre.remove)
        for batch in batches:
            masks[0] = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            run(model, batch)
            said.clear()
    return grams, takes


@torch.no_grad()
def fold(
    model: nn.Module,
    classes: Sequence[UnitClass],
    of_norm: Mapping[str, str],
    takes: Mapping[str, str],
) -> None:
    """Multiply the scale of each norm into the weights that read it."""
    for c in classes:
        for m in c.members:
            norm = takes.get(m.tensor.rpartition(".")[0])
            if not m.produces and norm is not None and of_norm[norm] == c.name:
                p = model.get_parameter(m.tensor)
                scale = model.get_parameter(f"{norm}.weight")
                p.mul_(scale.view([-1 if a == m.axis else 1 for a in range(p.dim())]))
    for name in of_norm:
        model.get_parameter(f"{name}.weight").fill_(1.0)
