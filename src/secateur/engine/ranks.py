"""Several processes that train one model: what they average, agree on, and hold only a part of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from secateur.errors import ConfigError

_TOGETHER = ContextVar("together", default=False)


def several() -> bool:
    """Whether this process is one of several that torch.distributed has joined."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def together() -> Iterator[None]:
    """While open, what is measured on data is averaged over all ranks, each of which must open it.

    Outside, a rank may score alone, as one that prunes while others wait.
    """
    token = _TOGETHER.set(several())
    try:
        yield
    finally:
        _TOGETHER.reset(token)


@torch.no_grad()
def mean_(tensors: Sequence[Tensor], weight: float = 1.0) -> float:
    """Make each tensor its mean over ranks, in place, each rank counting with its weight.

    Args:
        tensors: Of the same shapes on every rank.
        weight: Of this rank, as the number of batches it has seen.

    Returns:
        The sum of the weights. Outside ``together()`` nothing happens, and it is the weight.
    """
    if not _TOGETHER.get() or not tensors:
        return weight
    total = torch.tensor([float(weight)], device=tensors[0].device)
    dist.all_reduce(total)
    for tensor in tensors:
        value = tensor.float() * weight
        dist.all_reduce(value)
        tensor.copy_(value / total)
    return float(total)


def everywhere(flag: bool, device: torch.device) -> bool:
    """Whether it is true on all ranks."""
    if not several():
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, dist.ReduceOp.MIN)
    return bool(value)


def require_same(values: Mapping[str, Any], remedy: str, device: torch.device) -> None:
    """Compare values, by name, with those of the other ranks; every rank raises if any differs.

    Args:
        values: As many on every rank: masks, which are compared whole, or anything with a repr.
        remedy: The end of the error's sentence.
        device: Where the ranks can exchange tensors.

    Raises:
        ConfigError: They differ.
    """
    if not several():
        return
    ours = torch.tensor([_number(v) for v in values.values()], device=device)
    found = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(found, ours)
    for rank, theirs in enumerate(found):
        wrong = [
            n for n, same in zip(values, (theirs == found[0]).tolist(), strict=True) if not same
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ConfigError(
                f"the ranks disagree about {', '.join(wrong[:3])}{more}: rank {rank} has another "
                f"than rank 0; {remedy}"
            )


def _number(value: Any) -> int:
    if isinstance(value, Tensor):
        flat = local(value).flatten()
        places = torch.arange(1, len(flat) + 1, device=flat.device)
        return int((flat * (places * 0x9E3779B97F4A7C15 % 2**61)).sum())
    return int.from_bytes(sha256(repr(value).encode()).digest()[:7], "big")


# Sharded parameters, as of fully_shard.


def sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts; every rank must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, laid out over ranks as the parameter is."""
    if not sharded(parameter) or sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = parameter
    # Every rank has the whole: nothing need be sent.
    return distribute_tensor(tensor, placed.device_mesh, placed.placements, src_data_rank=None)


def require_whole(model: nn.Module, who: str) -> None:
    """Refuse a model whose parameters are sharded, for what must run or rewrite it.

    Raises:
        ConfigError: They are.
    """
    for name, p in model.named_parameters():
        if sharded(p):
            raise ConfigError(
                f"{who} runs the model outside the loop, and {name} is sharded (a DTensor): find "
                "the masks before fully_shard, and attach them after it: "
                "sec.attach(model, optimizer, masks)"
            )
