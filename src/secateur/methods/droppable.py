"""Which blocks of a model, or parts of its blocks, can be left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import require, require_seen, run, take
from secateur.engine.blocks import Block, find_blocks
from secateur.engine.calibration import checked
from secateur.engine.handed import handing_on
from secateur.engine.order import epoch_batches
from secateur.errors import PlanError
from secateur.measure.calling import device_of, evaluating, to_device
from secateur.methods.depth import Depth, staying
from secateur.plan.gaps import Gap, check_caches, first_of

Said = dict[str, tuple[Tensor, Tensor, int]]  # module -> its input, its output, number of outputs


def depth_of(
    model: nn.Module,
    data: Iterable[Any] | None,
    *,
    parts: bool = False,
    ignore: Sequence[str] = (),
    loss: Any = None,
    seed: int = 0,
) -> Depth:
    """Find the chain of blocks of a model, and what of it may go.

    Args:
        model: Any module with a list of blocks, each of which gives what the next one takes.
        data: Batches to judge by.
        parts: What may go is the parts that blocks add to their input, not whole blocks.
        ignore: Globs over names of blocks and parts that stay.
        loss: Function of (output, target).
        seed: Of whatever is random.

    Raises:
        DataError: No data, or the model does not run on them.
        PlanError: The model has no such chain, or its blocks are no sums.
        ConfigError: A glob that matches nothing.

    Example:
        >>> net = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)])
        >>> [gap.module for gap in depth_of(net, [torch.ones(1, 2)]).candidates]
        ['0', '1', '2']
    """
    device = device_of(model)
    source = epoch_batches(require(data, "Leaving out blocks"), seed, 0)
    batches = tuple(to_device(batch, device) for batch in checked(model, take(source)))
    with evaluating(model):
        found = find_blocks(model, lambda: run(model, batches[0]))
    said = _watched(model, batches[0])
    blocks = _chain(model, found, said)
    require_seen(said[blocks[-1]][1], f"what {blocks[-1]} gives")
    here = Depth(
        model, blocks, tuple(said[b][2] for b in blocks), (), batches, loss=loss, seed=seed
    )
    gaps = [Gap(b) for b in blocks]
    if parts:
        gaps = [Gap(n, said[n][2]) for b in blocks for n in _parts(model, b, said)]
        _check_sums(here, gaps, batches[0])
    stay = staying(ignore, [g.module for g in gaps])
    needed = set() if parts else handing_on(model, blocks, batches[0])
    may = tuple(g for g in gaps if g.module not in stay | needed)
    check_caches(model, may)
    if needed - stay:
        names = ", ".join(sorted(needed - stay))
        here.notes.append(f"kept, as later blocks read what they make beside outputs: {names}")
    return replace(here, candidates=may)


def _watched(model: nn.Module, batch: Any) -> Said:
    """What modules are given and give."""
    said: Said = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            if isinstance(first, Tensor) and tensors:
                count = len(output) if isinstance(output, tuple) else 0
                said[name] = (first_of(args, kwargs), first, count)

        return hook

    with ExitStack() as stack, evaluating(model):
        for name, module in model.named_modules():
            handle = module.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        run(model, batch)
    return said


def _chain(model: nn.Module, found: Sequence[Block], said: Said) -> tuple[str, ...]:
    """The longest chain of blocks in one list that give what they take in shape."""
    chains: dict[str, list[Block]] = {}
    for block in found:
        if isinstance(model.get_submodule(block.chain), nn.ModuleList | nn.Sequential):
            chains.setdefault(block.chain, []).append(block)
    longest = max(chains.values(), key=len, default=[])
    alike = [
        b for b in longest if b.name in said and said[b.name][0].shape == said[b.name][1].shape
    ]
    if len(alike) < 2 or len(alike) < len(longest):
        raise PlanError(
            "no list of blocks was found of which each gives a tensor of the shape that it takes: "
            "only such blocks can be left out"
        )
    if any(b.kept for b in longest[:-2]):
        raise PlanError(
            f"outputs of the blocks in {longest[0].chain} are used by more than the next block, so "
            "none of them can be left out"
        )
    return tuple(b.name for b in longest)


def _parts(model: nn.Module, block: str, said: Said) -> list[str]:
    """Direct parts of a block that multiply, and take and give a tensor of the block's shape."""
    shape = said[block][1].shape
    return [
        f"{block}.{name}"
        for name, part in model.get_submodule(block).named_children()
        if any(p.dim() >= 2 for p in part.parameters())
        and f"{block}.{name}" in said
        and said[f"{block}.{name}"][0].shape == said[f"{block}.{name}"][1].shape == shape
    ]


def _check_sums(here: Depth, gaps: Sequence[Gap], batch: Any) -> None:
    """Without all of its parts a block must give what it is given."""
    reached = here.reaching(batch, gaps)
    for name, before, after in zip(here.blocks, reached, reached[1:], strict=False):
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
            raise PlanError(
                f"{name} is not its input plus what modules in it add (norms after the sum, or an "
                "MLP that is no module?), so parts of it cannot be left out: remove whole blocks"
            )
