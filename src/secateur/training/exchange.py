"""Drop and grow: units that move, as many as before in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.engine import ranks
from secateur.engine.masks import inputs_of, keep_top
from secateur.engine.seams import Moment
from secateur.errors import ConfigError
from secateur.granularity.channel import ChannelUnits

if TYPE_CHECKING:
    from secateur.training.handle import Handle


def require_scores(handle: Handle) -> None:
    """Refuse to grow by gradients what has none.

    Raises:
        ConfigError: Units of the graph: all that makes a masked one is zero, its gradients too.
    """
    method = handle.method
    if method.grow == "gradient" and isinstance(handle.units, ChannelUnits):
        raise ConfigError(
            f"method {method.name!r} grows where gradients are large, and a masked unit of "
            f"granularity {method.granularity!r} is zero in all that makes it, so it has none: use "
            "granularity='element', or method 'set', which grows at random"
        )


def exchange(handle: Handle, share: float) -> None:
    """Drop the lowest of the kept, let as many come back; counts of each layer stay."""
    moment, units = handle.moment, handle.units
    gradients = {
        n: ranks.whole(torch.zeros_like(p) if p.grad is None else p.grad.detach())
        for n, p in moment.parameters.items()
    }
    dropped = units.reduce(handle.score(handle.method.criterion, gradients))
    grown = units.reduce(handle.score(handle.method.grow, gradients))
    kept = units.reduce({n: ranks.whole(m).float() for n, m in moment.masks.items()})
    chosen = {}
    for space, part in kept.items():
        mask = part > 0.5
        k = int(mask.sum())
        out = int(share * k)
        stay = keep_top(dropped[space].masked_fill(~mask, -torch.inf), k - out)
        back = keep_top(grown[space].masked_fill(stay, -torch.inf), out) & ~stay
        chosen[space] = stay | back
    old = moment.masks
    masks = units.spread(chosen)
    moment.masks = {
        n: ranks.like(masks[n].contiguous(), p) if n in masks else old[n]
        for n, p in moment.parameters.items()
    }
    for name, mask in moment.masks.items():
        new = mask & ~old[name]
        moment.clear(name, new)
        if isinstance(units, ChannelUnits):
            _begin_anew(moment, name, new)


@torch.no_grad()
def _begin_anew(moment: Moment, name: str, new: Tensor) -> None:
    """Start what grew of a unit as a fresh layer: at zero altogether it would never get a gradient.

    Weights are uniform within one over the root of their number of inputs, scales of norms 1,
    shifts and biases 0; a norm forgets what it saw of the unit.
    """
    p, (owner, _, leaf) = moment.parameters[name], name.rpartition(".")
    module = moment.model.get_submodule(owner)
    if p.dim() > 1:
        bound = (inputs_of(module, p)[1] * p.shape[2:].numel()) ** -0.5
        drawn = (torch.rand(p.shape, generator=moment.generator) * 2 - 1) * bound
        p.copy_(torch.where(new, ranks.like(drawn.to(p), p), p))
    elif leaf == "weight":
        p.masked_fill_(new, 1)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.masked_fill_(new, 0)
            assert module.running_var is not None
            module.running_var.masked_fill_(new, 1)
