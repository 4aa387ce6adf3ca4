"""A script as Accelerate's tutorial writes it, but for one line, run as launchers do."""

import os
import socket
import sys

import torch
import torch._dynamo  # optimizers import it: once, before the process forks
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import secateur as sec
from secateur.engine.checkpoint import save_state

METHODS = {"rigl": {"amount": 0.7, "every": 2}, "snip": {"amount": 0.7}, "l2": {"amount": 0.5}}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))


def samples(n: int = 96) -> list[tuple[Tensor, int]]:
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(12, generator=g), index % 4) for index in range(n)]


def run(name: str, batch: int) -> tuple[nn.Module, sec.MaskSet, int]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(samples(), batch_size=batch)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    handle = sec.attach(model, optimizer, name, steps=6, data=list(loader)[:2], **METHODS[name])
    for _ in range(2):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    steps = handle.steps
    return net, handle.finish().masks, steps


def main(out: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for name in METHODS:
        net, masks, steps = run(name, 8)
        found[name] = {"weights": dict(net.state_dict()), "masks": dict(masks), "steps": steps}
    save_state(f"{out}{Accelerator(cpu=True).process_index}", found)


if __name__ == "__main__":  # what a launcher does, without importing torch twice
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    child = os.fork()
    rank = str(int(child == 0))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    main(sys.argv[1])
    torch.distributed.barrier()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
