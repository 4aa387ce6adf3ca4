"""Runs that are stored after every step; ``python killable.py FILE OUT`` kills two on the way."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it: once, before the process forks
from torch import nn

import secateur as sec
from secateur.engine.checkpoint import load_state, restore_rng, rng_state, save_state

STEPS = 30
METHODS: dict[str, dict[str, Any]] = {
    "gradual_magnitude": {"amount": 0.8},
    "rigl": {"amount": 0.7, "every": 3},
    "set": {"amount": 0.7, "every": 3},
    "deepr": {"amount": 0.7, "noise": 0.01},
    "l0": {"amount": 0.5},
}


class Run:
    """One network under one method, in a loop with dropout, momentum and a schedule."""

    def __init__(self, name: str, stored: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 4)
        )
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.05, STEPS)
        if stored is not None:
            self.net.load_state_dict(stored["net"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.cycle.load_state_dict(stored["cycle"])
        state = None if stored is None else stored["handle"]
        self.handle = sec.attach(
            self.net, self.optimizer, name, steps=STEPS, state=state, **METHODS[name]
        )

    def step(self) -> None:
        x, y = torch.randn(8, 12), torch.randint(0, 4, (8,))
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()
        self.cycle.step()

    def state_dict(self) -> dict[str, Any]:
        cycle = {k: v for k, v in self.cycle.state_dict().items() if not callable(v)}
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cycle": {k: v for k, v in cycle.items() if not k.startswith("_anneal")},
            "handle": self.handle.state_dict(),
        }


def train(file: Path | None, pause: float = 0.0) -> dict[str, Any]:
    """All runs, step by step; what they have come to."""
    stored = load_state(file) if file is not None and file.exists() else None
    runs = {n: Run(n, None if stored is None else stored["runs"][n]) for n in METHODS}
    torch.manual_seed(1)
    first = 0
    if stored is not None:
        restore_rng(stored["rng"])
        first = stored["step"]
    for step in range(first, STEPS):
        for run in runs.values():
            run.step()
        if file is not None:
            states = {n: run.state_dict() for n, run in runs.items()}
            save_state(file, {"runs": states, "rng": rng_state(), "step": step + 1})
        time.sleep(pause)
    return {
        "first": first,
        "runs": {
            n: {"masks": dict(run.handle.finish().masks), "weights": run.net.state_dict()}
            for n, run in runs.items()
        },
    }


def killed(file: Path) -> int:
    """Start a process that trains, kill it at a random moment after its first stored step."""
    stamp = file.stat().st_mtime_ns if file.exists() else None
    child = os.fork()  # of a process that has imported torch and done nothing yet
    if child == 0:
        train(file, pause=0.02)
        os._exit(0)
    while not file.exists() or file.stat().st_mtime_ns == stamp:
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for _ in range(2):
        if killed(Path(sys.argv[1])) != -signal.SIGKILL:
            sys.exit("it ended before it could be killed")
    save_state(sys.argv[2], train(Path(sys.argv[1])))
