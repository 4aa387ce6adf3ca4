"""Layer-wise pruning by several processes: samples are split, sums added, solutions shared.

Every process that ``torch.distributed`` has joined makes the same call. What differs is which
samples it runs and which rows or layers it solves; masks and weights are then the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from secateur import errors
from secateur.engine.gather import Gathered, Sums
from secateur.engine.products import Layer
from secateur.engine.ranks import several
from secateur.errors import DataError, SecateurError


def place() -> tuple[int, int]:
    """Number of this process, counted from zero, and of all of them."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)


def own(samples: Sequence[Any]) -> Sequence[Any]:
    """The samples that this process runs.

    Raises:
        DataError: There are fewer samples than processes.
    """
    rank, count = place()
    if 0 < len(samples) < count:
        raise DataError(
            f"{len(samples)} calibration batches cannot be split over {count} processes: give "
            "more and smaller batches, or start fewer processes"
        )
    return samples[rank::count]


def exchange(value: Any) -> list[Any]:
    """What each process says, in the order of their numbers; anything that JSON can say."""
    if not several():
        return [value]
    device = _device()
    mine = torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(place()[1])]
    dist.all_gather(sizes, torch.tensor([len(mine)], device=device))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(texts, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
    return [
        json.loads(bytes(text[: int(size)].tolist()))
        for text, size in zip(texts, sizes, strict=True)
    ]


@contextmanager
def agreed() -> Iterator[None]:
    """An error of one process becomes one of all of them, instead of letting the others wait."""
    mine, said = None, None
    try:
        yield
    except SecateurError as error:
        mine, said = error, [type(error).__name__, str(error)]
    found = exchange(said)
    if mine is not None:
        raise mine
    for rank, other in enumerate(found):
        if other is not None:
            raise getattr(errors, other[0], SecateurError)(f"process {rank}: {other[1]}")


def add_up(gathered: Gathered) -> None:
    """Make the sums those over the samples of all processes; experts may be seen by some only.

    Raises:
        DataError: Layers share their input in one process and not in another.
    """
    if not several():
        return
    found = exchange([[asdict(layer) for layer in gathered.layers.values()], gathered.leader])
    for layers, leaders in found:
        for said in layers:
            shape, stride = tuple(said["shape"]), tuple(said["stride"])
            layer = Layer(**{**said, "shape": shape, "stride": stride})
            gathered.layers.setdefault(layer.name, layer)
        for name, leader in leaders.items():
            if gathered.leader.setdefault(name, leader) != leader:
                raise DataError(
                    f"{name} had the input of {leader} on some samples and that of "
                    f"{gathered.leader[name]} on others: ignore= one of them"
                )
    gathered.layers = {n: gathered.layers[n] for layers, _ in found for n in _names(layers)}
    gathered.leader = {n: gathered.leader[n] for _, leaders in found for n in leaders}
    sums = {
        name: gathered.sums.get(name, Sums()) for name in dict.fromkeys(gathered.leader.values())
    }
    device = _device()
    for name, these in sums.items():
        width = gathered.layers[name].shape[1]
        these.tokens = int(total(torch.tensor(these.tokens, device=device)))
        these.first = _total(these.first, (width,))
        these.squares = _total(these.squares, (width,))
        if "gram" in gathered.needs:
            these.gram = _total(these.gram, (width, width))
        if "cross" in gathered.needs:
            these.cross = _total(these.cross, (width, width))
    gathered.sums = sums
    gathered.gradients = {n: _all_of(mine) for n, mine in gathered.gradients.items()}


def share(tensor: Tensor, owner: int) -> Tensor:
    """The tensor of one process, bit for bit, in all of them."""
    if not several():
        return tensor
    shared = tensor.contiguous()
    dist.broadcast(shared.view(-1).view(torch.uint8), owner)
    return shared


def total(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if several():
        dist.all_reduce(value)
    return value


def _all_of(mine: list[Tensor]) -> list[Tensor]:
    """The tensors of all processes, those of the first one first."""
    rank, counts = place()[0], exchange(len(mine))
    return [
        share(mine[k] if owner == rank else torch.empty_like(mine[0]), owner)
        for owner, count in enumerate(counts)
        for k in range(count)
    ]


def _names(layers: Sequence[dict[str, Any]]) -> list[str]:
    return [layer["name"] for layer in layers]


def _total(value: Any, shape: tuple[int, ...]) -> Tensor:
    """The sum over processes of what is a number in those that have seen nothing."""
    return total(value if isinstance(value, Tensor) else torch.zeros(shape, device=_device()))


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
