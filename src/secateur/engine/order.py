"""The order of data as a function of seed and epoch, so that a run can resume in mid-epoch."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch

from secateur.engine.checkpoint import restore_rng, rng_state


def epoch_batches(data: Iterable[Any], seed: int, epoch: int, skip: int = 0) -> Iterator[Any]:
    """The batches of one epoch in the order of ``(seed, epoch)``, without the first ``skip``.

    All global generators, and those of a DataLoader and its sampler, are seeded first, and
    ``set_epoch`` is called where there is one; persistent workers are started anew. The skipped
    batches are drawn and dropped.
    """
    number = (seed * 1_000_003 + epoch) % 2**63
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
    for generator in _generators(data):
        generator.manual_seed(number)
    for part in _parts(data):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    if getattr(data, "persistent_workers", False):
        data._iterator = None  # type: ignore[attr-defined]  # the old workers' generators ran on
    batches = iter(data)
    for _ in islice(batches, skip):
        pass
    return batches


@contextmanager
def generators_kept(data: Iterable[Any]) -> Iterator[None]:
    """Give every generator that ``epoch_batches`` seeds back to the caller as it was."""
    before = rng_state()
    own = [(generator, generator.get_state()) for generator in _generators(data)]
    try:
        yield
    finally:
        restore_rng(before)
        for generator, state in own:
            generator.set_state(state)


def _parts(data: Any) -> list[Any]:
    batch_sampler = getattr(data, "batch_sampler", None)
    parts = [
        data,
        getattr(data, "dataset", None),
        getattr(data, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    unique = {id(part): part for part in parts if part is not None}
    return list(unique.values())


def _generators(data: Any) -> list[torch.Generator]:
    found = [getattr(part, "generator", None) for part in _parts(data)]
    unique = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(unique.values())
