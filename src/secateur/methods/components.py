"""Principal components of what reads the residual stream in each block, block after block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import inputs_of, require_seen
from secateur.engine.blocks import Block
from secateur.engine.sequential import token_masks, walk
from secateur.plan.bases import SHORTCUT


@torch.no_grad()
def components(
    model: nn.Module,
    blocks: Sequence[str],
    norms: Mapping[str, Sequence[str]],
    batches: Iterable[Any],
    left: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each block the mean squares along its components, falling, and the components as columns.

    What counts is what the norms of a block are given, and what it gives: its last part writes what
    only the next block reads, and would else be cut off unseen. Later blocks see what the first
    ``left`` components of the earlier ones let through, as in the sliced model.

    Args:
        model: Its norms know no basis.
        blocks: Their names, all but the first with a shortcut.
        norms: By class, in the order of the blocks: names of the norms.
        batches: Calibration; tokens that an attention mask hides do not count.
        left: How many components stay; the width for all.

    Returns:
        By class: ``(width,)`` and ``(width, width)``, float64.

    Raises:
        DataError: Something on the way is not finite.
    """
    samples = list(batches)
    masks = [next(iter(token_masks(inputs_of(sample))), None) for sample in samples]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    chain = [Block(name, name.rpartition(".")[0]) for name in blocks]
    # Closed here: a walk that an error leaves behind would give back its own state at any time.
    with ExitStack() as cut, closing(walk(model, samples, blocks=chain)) as walked:
        for number, (step, (space, names)) in enumerate(zip(walked, norms.items(), strict=True)):
            gram: Any = 0.0
            for k, mask in enumerate(masks):
                seen: list[Tensor] = []
                with ExitStack() as stack:
                    for name in names:
                        norm = model.get_submodule(name)
                        handle = norm.register_forward_pre_hook(
                            lambda _, args, to=seen: to.append(args[0])
                        )
                        stack.callback(handle.remove)
                    output = step.walk.run(step.block, k, step.walk.streams[0], False)
                seen.append(output[0] if isinstance(output, tuple) else output)
                for x in seen:
                    hidden = mask is not None and mask.shape == x.shape[:-1]
                    rows = x[mask.bool()] if hidden else x.flatten(0, -2)  # type: ignore[union-attr]
                    gram = gram + rows.double().T @ rows.double()
            require_seen(gram, f"what reads the residual stream in {step.block.name}")
            values, vectors = torch.linalg.eigh(gram)
            found[space] = values.flip(0), vectors.flip(1)
            if left < len(values):
                stay = vectors[:, -left:]
                after = [f"{blocks[number + 1]}.{SHORTCUT}"] if number + 1 < len(blocks) else []
                for name in (*names, *after):
                    module = model.get_submodule(name)
                    cut.callback(module.register_forward_pre_hook(_cut(stay @ stay.T)).remove)
    return found


def _cut(onto: Tensor) -> Any:
    """Residual streams may be projected where they are read: that is the same as where written."""

    def hook(_: nn.Module, args: Any) -> Any:
        return (args[0] @ onto.to(args[0]), *args[1:])

    return hook
