"""Less dropout in a network with fewer connections, as Han et al. retrain theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod, sqrt
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from secateur.engine.masks import MaskSet


def connections_left(model: nn.Module, plan: Any) -> dict[str, float]:
    """Fraction of the connections of each layer that are left, by the name of its module.

    Args:
        model: After pruning.
        plan: Masks, or a plan of removed units, which knows the shapes before; else nothing is
            known to be gone.

    Example:
        >>> masks = MaskSet({"0.weight": torch.tensor([[True, False], [False, False]])})
        >>> connections_left(nn.Sequential(nn.Linear(2, 2)), masks)
        {'0': 0.25}
    """
    shapes = {name: prod(shape) for name, shape in getattr(plan, "shapes", {}).items()}
    kept = {n: int(m.sum()) for n, m in plan.items()} if isinstance(plan, MaskSet) else {}
    found = {}
    for name, module in model.named_modules():
        weight, key = module._parameters.get("weight"), f"{name}.weight".lstrip(".")
        if weight is not None and weight.dim() > 1:
            number = weight.numel()
            found[name] = kept.get(key, number) / shapes.get(key, number)
    return found


@contextmanager
def rescaled_dropout(model: nn.Module, plan: Any, wanted: bool = True) -> Iterator[None]:
    r"""Drop $D_r = D_o \sqrt{C_{ir} / C_{io}}$ of what a layer gives while the block lasts.

    $C_{io}$ and $C_{ir}$ are the connections of layer i before pruning and after: they go with the
    square of the number of neurons, of which dropout takes a fraction. Layer i is the one with
    weights that ran last before the dropout module. Dropout that is no module is not seen.

    Args:
        model: Whose modules get another ``p`` when they run, and their own afterwards.
        plan: See ``connections_left``.
        wanted: False does nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> masks = MaskSet({"0.weight": torch.tensor([[True, False], [False, False]])})
        >>> with rescaled_dropout(net, masks):
        ...     _ = net(torch.ones(1, 2)); net[1].p
        0.25
        >>> net[1].p
        0.5
    """
    rates = {m: m.p for m in model.modules() if isinstance(m, _DropoutNd)} if wanted else {}
    latest = 1.0

    def ran(left: float) -> Any:
        def hook(*_: Any) -> None:
            nonlocal latest
            latest = left

        return hook

    def before(module: nn.Module, _: Any) -> None:
        module.p = rates[module] * sqrt(latest)  # type: ignore[index,assignment]

    hooks: list[Any] = [m.register_forward_pre_hook(before) for m in rates]
    hooks.append(model.register_forward_pre_hook(ran(1.0)))  # nothing has run yet
    for name, left in connections_left(model, plan).items() if rates else ():
        hooks.append(model.get_submodule(name).register_forward_hook(ran(left)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, rate in rates.items():
            module.p = rate
