"""Train what stays of a block until the block gives again what it gave before it was pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.engine.batches import finite, inputs_of
from secateur.engine.gradients import differentiable, frozen
from secateur.engine.padding import Tokens
from secateur.engine.parallel import agreed, exchange, place, share
from secateur.engine.sequential import Step
from secateur.errors import DataError

_SCALE = 4096.0  # of gradients, which float16 would lose; a power of two changes no other type's
_RATE = 0.02  # of the first moves, relative to the mean size of a matrix's weights


def tune(step: Step, masks: Mapping[str, Tensor], passes: int) -> list[str]:
    r"""Minimize $\sum_t \lVert f(x_t) - \hat f(x_t) \rVert^2 / \lVert \hat f(x_t) \rVert^2$.

    f is the block, $x_t$ what it sees of a token behind the pruned blocks, and $\hat f(x_t)$ what
    it made of that before it was pruned; where the dense stream runs along, what the dense block
    made of the dense input. Adam takes one step a sample, in their order; its rate rises over the
    first fifth and falls to zero. Zeros stay zeros.

    Args:
        step: The pruned block; its targets were kept by ``step.gather(keep=True)``.
        masks: By parameter, True = stays; these parameters are trained, in place.
        passes: Over the samples.

    Returns:
        Notes: that nothing could be tuned, if so.

    Raises:
        DataError: The error is not finite.
    """
    walk, rank, count = step.walk, *place()
    numbers = exchange(len(walk.samples))
    weights = {name: p for name, p in step.weights().items() if name in masks}
    # The optimizer moves copies in float32, whose small steps a shorter type would swallow.
    copies = {name: p.detach().float().clone() for name, p in weights.items()}
    optimizer = torch.optim.Adam(
        [{"params": [c], "rate": _RATE * float(c.abs().mean())} for c in copies.values()],
        betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    total, moved = passes * sum(numbers), False
    with frozen(walk.model.parameters()), differentiable(weights.values()):
        for number in range(total):
            sample, owner = divmod(number % sum(numbers), count)
            with agreed():
                gradients = _gradients(step, sample, weights) if owner == rank else {}
            moved |= bool(gradients)
            for name, p in weights.items():
                mine = gradients.pop(name, None) if owner == rank else torch.empty_like(p.detach())
                mine = torch.zeros_like(p.detach()) if mine is None else mine
                copies[name].grad = share(mine, owner).float().mul_(masks[name]).div_(_SCALE)
            progress = (number + 1) / total
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * min(4 * progress, 1 + 1 / total - progress)
            optimizer.step()
            for name, p in weights.items():
                p.detach().copy_(copies[name])
    if any(exchange(moved)):
        return []
    return [
        f"{step.block.name} was not tuned: what it gives does not depend on its weights with a "
        "gradient (it may compute under torch.no_grad)"
    ]


def _gradients(step: Step, sample: int, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Of the error on one sample, for the weights that it depends on."""
    walk = step.walk
    aim = walk.outputs["dense" if "dense" in walk.outputs else "pruned"][step.block.name, sample]
    with torch.enable_grad():
        output = walk.run(step.block, sample, walk.streams[0], keep=False)
        mask = Tokens(walk.model, inputs_of(walk.samples[sample])).mask(step.block.name)
        loss = error(output, aim, [] if mask is None else [mask])
        scaled = _SCALE * loss
    if not finite(loss.detach()):
        raise DataError(
            f"the error of {step.block.name} on a calibration sample is {float(loss.detach())}: "
            "leave the tuning out (tune=0), or run the model in float32"
        )
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(scaled, list(weights.values()), allow_unused=True)
    return {name: g for name, g in zip(weights, found, strict=True) if g is not None}


def error(output: Any, aim: Any, valid: Sequence[Tensor] = ()) -> Tensor:
    """The mean over tokens of squared errors relative to what is aimed at.

    Tokens that are nearly zero beside the others count as if they had a thousandth of the mean.

    Args:
        output: Of a block: a tensor ``(..., tokens, features)``, or several in whatever structure.
        aim: What it should be.
        valid: Masks over tokens, 1 = no padding; what has their shape is left out where they are 0.

    Example:
        >>> error(torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        tensor(0.2499)
    """
    total = torch.zeros(())
    for one, other in zip(tree_leaves(output), tree_leaves(aim), strict=True):
        if not isinstance(one, Tensor) or not one.is_floating_point() or not one.dim():
            continue
        wanted = other.detach().float()
        size = wanted.square().mean(-1)
        least = 1e-3 * size.mean() + torch.finfo(size.dtype).tiny
        lost = (one.float() - wanted).square().mean(-1) / (size + least)
        for mask in valid:
            if mask.shape == lost.shape:
                lost = lost[mask != 0]
                break
        total = total.to(lost) + lost.mean()
    return total
