"""EvoPress: evolve which blocks are missing, by how far outputs move from the dense model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from secateur.engine.batches import inputs_of, logits_of, require_seen
from secateur.engine.padding import Tokens, picked
from secateur.errors import ConfigError, DataError
from secateur.graph.forward import tensors_of_output
from secateur.methods.depth import Depth
from secateur.methods.registry import Method, method
from secateur.plan.gaps import Gap

Gaps = tuple[Gap, ...]


@method(stage="after", paper="arXiv:2410.14649")
def evopress(
    amount: float = 0.2,
    *,
    parts: bool = False,
    generations: int = 20,
    offspring: int = 16,
    survivors: int = 4,
) -> Method:
    """One parent; children differ from it by one to three exchanges; the best of all is the next.

    How far outputs move is the divergence of the distributions that the logits say; of a model
    without logits, as an encoder, the squared distance of what it gives, relative to the dense one.
    Children are judged on the first batch, the survivors and the parent on all of them.

    Args:
        amount: Fraction of the blocks (or parts) removed.
        parts: Leave out parts of blocks instead of whole ones.
        generations: How often.
        offspring: Children of each generation.
        survivors: Of these, how many are judged on all batches.

    Example:
        >>> evopress(0.25, parts=True).granularity
        'sublayer'
    """
    if min(generations, offspring, survivors) < 1 or survivors > offspring:
        raise ConfigError("generations, offspring and survivors are whole numbers of at least 1")
    search = partial(evolve, generations=generations, offspring=offspring, survivors=survivors)
    return Method(amount, granularity="sublayer" if parts else "layer", search=search)


def evolve(
    depth: Depth,
    enough: Callable[[Sequence[Gap]], bool],
    *,
    generations: int,
    offspring: int,
    survivors: int,
) -> list[Gap]:
    """The best set of gaps that was seen, in the order of the model."""
    generator = torch.Generator().manual_seed(depth.seed)
    dense = [_said(depth, batch, ()) for batch in depth.batches]
    for values, logarithms in dense:
        require_seen(values.exp() if logarithms else values, "what the model gives")
    known: dict[tuple[Gaps, int], float] = {}

    def fitness(gaps: Gaps, batches: int) -> float:
        if (gaps, batches) not in known:
            known[gaps, batches] = sum(
                _distance(dense[k], _said(depth, depth.batches[k], gaps)) for k in range(batches)
            )
        return known[gaps, batches]

    order = torch.randperm(len(depth.candidates), generator=generator).tolist()
    gone: list[Gap] = []
    for k in order:
        if enough(gone):
            break
        gone.append(depth.candidates[k])
    parent = _ordered(depth, gone)
    for _ in range(generations):
        children = {_exchanged(depth, parent, generator) for _ in range(offspring)} - {parent}
        best = sorted(_sorted(depth, children), key=lambda gaps: fitness(gaps, 1))[:survivors]
        parent = min([parent, *best], key=lambda gaps: fitness(gaps, len(depth.batches)))
    return list(parent)


def _ordered(depth: Depth, gaps: Sequence[Gap]) -> Gaps:
    return tuple(gap for gap in depth.candidates if gap in set(gaps))


def _sorted(depth: Depth, children: set[Gaps]) -> list[Gaps]:
    """In an order that does not depend on hashes."""
    return sorted(children, key=lambda gaps: [depth.candidates.index(g) for g in gaps])


def _exchanged(depth: Depth, gaps: Gaps, generator: torch.Generator) -> Gaps:
    """One to three gaps exchanged for others of the same size, so that the budget stays met."""
    size = {
        g: sum(p.numel() for p in depth.module(g.module).parameters()) for g in depth.candidates
    }
    here = list(gaps)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        if not here:
            break
        k = int(torch.randint(len(here), (), generator=generator))
        others = [g for g in depth.candidates if g not in here and size[g] == size[here[k]]]
        if others:
            here[k] = others[int(torch.randint(len(others), (), generator=generator))]
    return _ordered(depth, here)


def _said(depth: Depth, batch: object, gaps: Sequence[Gap]) -> tuple[Tensor, bool]:
    """What the model gives, and whether that is the logarithms of a distribution."""
    with depth.without(gaps):
        output = depth.output(batch)
    try:
        return _tokens(depth, batch, logits_of(output)).float().log_softmax(-1), True
    except DataError:
        found = [t for t in tensors_of_output(output) if t.is_floating_point() and t.dim() > 1]
        if not found:
            raise
        return _tokens(depth, batch, found[0]).float(), False


def _tokens(depth: Depth, batch: object, output: Tensor) -> Tensor:
    """What the model gives for tokens, and not for padding."""
    valid = Tokens(depth.model, inputs_of(batch)).rows(output)
    return output if valid is None else picked(output, valid)


def _distance(dense: tuple[Tensor, bool], pruned: tuple[Tensor, bool]) -> float:
    """KL divergence from the dense model's distribution, mean over tokens; else see above."""
    (before, logarithms), (after, _) = dense, pruned
    if logarithms:
        return float((before.exp() * (before - after)).sum(-1).mean())
    return float((before - after).square().sum() / before.square().sum().clamp(min=1e-30))
