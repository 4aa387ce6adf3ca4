"""Runs of two processes that train one network: ``python joined.py MEETING OUT``."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it: once, before the process forks
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sec
from secateur.engine.checkpoint import save_state

STEPS = 6
GROUPS: dict[str, dict[str, Any]] = {  # what is compared with one process
    "gradual_magnitude": {"amount": 0.8},
    "rigl": {"amount": 0.7, "every": 2},
    "set": {"amount": 0.7, "every": 2},
    "deepr": {"amount": 0.7, "noise": 0.01},
    "snip": {"amount": 0.8},
    "iterative_snip": {"amount": 0.8},
    "grasp": {"amount": 0.5},
    "edge_popup": {"amount": 0.5},
    "l0": {"amount": 0.5},
    "autoprune": {"amount": 0.5},
}
SHARDED = ("gradual_magnitude", "rigl", "set", "l2")


def build() -> nn.Module:
    """In float64: sums over ranks round otherwise, and that must not decide between near ties."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(),
                         nn.Linear(20, 4)).double()  # fmt: skip


def batches(seed: int, rank: int, world: int, n: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """A rank's part of batches of 16."""
    g = torch.Generator().manual_seed(seed)
    whole = [
        (torch.randn(16, 12, generator=g).double(), torch.randint(0, 4, (16,), generator=g))
        for _ in range(n)
    ]
    return [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in whole]


def attach(net: nn.Module, name: str, rank: int, world: int, **options: Any) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    if name == "autoprune":
        options["validation"] = batches(2, rank, world, 3)
    handle = sec.attach(
        net, optimizer, name, steps=STEPS, data=batches(1, rank, world, 2), **options
    )
    return optimizer, handle


def train(model: nn.Module, optimizer: Any, data: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


def run(name: str, rank: int, world: int) -> dict[str, Any]:
    """A whole run; of several ranks with DistributedDataParallel."""
    net = build()
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer, handle = attach(model, name, rank, world, **GROUPS[name])
    for _ in train(model, optimizer, batches(3, rank, world)):
        pass
    masks = handle.finish().masks
    return {"masks": dict(masks), "weights": net.state_dict()}


def sharded(name: str, rank: int, world: int) -> dict[str, Any]:
    """A run on shards, stopped and gone on with in the middle."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))

    def made() -> nn.Module:
        net = build()
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
        return net

    data = batches(3, rank, world)
    options = {"every": 2} if name in ("rigl", "set") else {}
    net = made()
    optimizer, handle = attach(net, name, rank, world, amount=0.7, **options)
    held = []
    for step, _ in enumerate(train(net, optimizer, data[:3])):
        masks = handle.masks
        held.append(all(not full(net, n)[~m].any() for n, m in masks.items()) or name == "l2")
        assert handle.steps == step + 1
    saved = handle.state_dict(), net.state_dict(), optimizer.state_dict()
    handle.detach()
    net = made()
    optimizer, handle = attach(net, name, rank, world, amount=0.7, **options)
    net.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    handle.load_state_dict(saved[0])
    for _ in train(net, optimizer, data[3:]):
        pass
    masks = handle.finish().masks
    held.append(all(not full(net, n)[~m].any() for n, m in masks.items()))
    weights = {n: full(net, n) for n in net.state_dict()}
    return {"held": held, "masks": dict(masks), "weights": weights}


def full(net: nn.Module, name: str) -> Tensor:
    return net.get_parameter(name).full_tensor().detach()


def message(what: Any) -> str:
    try:
        what()
    except sec.SecateurError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def mistakes(rank: int, world: int) -> dict[str, Any]:
    """What each rank is told where they disagree."""
    found = {}

    def other_weights() -> None:
        net = build()
        with torch.no_grad():
            net[2].weight.add_(rank * torch.randn(20, 20))
        attach(net, "synflow", rank, world, amount=0.5)

    def other_file() -> None:
        optimizer, handle = attach(net := build(), "rigl", rank, world, amount=0.5, every=2)
        for _ in train(DistributedDataParallel(net), optimizer, batches(3, rank, world, 2)):
            state = handle.state_dict()
        handle.load_state_dict({**state, "step": rank})

    def drifting() -> None:  # nobody averages the gradients
        net = build()
        optimizer, _ = attach(net, "rigl", rank, world, amount=0.5, every=2)
        for _ in train(net, optimizer, batches(3, rank, world)):
            pass

    found["seed"] = message(lambda: attach(build(), "random", rank, world, amount=0.5, seed=rank))
    found["amount"] = message(lambda: attach(build(), "random", rank, world, amount=0.5 + rank / 4))
    found["weights"] = message(other_weights)
    found["file"] = message(other_file)
    found["drift"] = message(drifting)
    return found


def broken(rank: int, world: int) -> dict[str, Any]:
    """One rank's batch is NaN, and no wrapper averages: the step is skipped on all."""
    net = build()
    optimizer, handle = attach(net, "random", rank, world, amount=0.5)
    before = net[0].weight.detach().clone()
    x, y = batches(3, rank, world, 1)[0]
    for _ in train(net, optimizer, [(x * (float("nan") if rank else 1.0), y)]):
        pass
    return {"skipped": handle.skipped, "same": bool(torch.equal(before, net[0].weight))}


def refused(rank: int, world: int) -> dict[str, Any]:
    """What needs the whole model says so where it is sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name in ("snip", "edge_popup"):
        net = fully_shard(build(), mesh=init_device_mesh("cpu", (world,)))
        found[name] = message(lambda n=net, m=name: attach(n, m, rank, world, amount=0.5))
    return found


def rank_of(meeting: str, out: str, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {
        "ddp": {name: run(name, rank, 2) for name in GROUPS},
        "shards": {name: sharded(name, rank, 2) for name in SHARDED},
        "mistakes": mistakes(rank, 2),
        "broken": broken(rank, 2),
        "refused": refused(rank, 2),
    }
    save_state(Path(f"{out}{rank}"), found)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()  # of a process that has imported torch and done nothing yet
    rank_of(*sys.argv[1:], rank=int(child == 0))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
