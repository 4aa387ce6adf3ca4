"""Run commands in this process, on networks that take no time."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from secateur.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert not logging.getLogger("secateur").handlers


@pytest.fixture
def secateur(capsys):
    """Run a command: ``secateur("trace", "zoo:resnet8")``."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Ran(code, written.out, written.err)

    return run


NET = """
    import torch
    from torch import nn

    print("imported")

    def build():
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(),
                             nn.Linear(8, 3))

    def example_inputs():
        return torch.randn(2, 6)

    def loaders(batch_size=10, seed=0):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 6, generator=g)
        data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
        test = torch.utils.data.TensorDataset(x[:20], x[:20, :3].argmax(1))
        return (torch.utils.data.DataLoader(data, 10, shuffle=True, generator=g),
                torch.utils.data.DataLoader(test, 10))

    def smallness(model):
        return -sum(p.abs().sum().item() for p in model.parameters())

    def zero_loss(output, target):
        return output.sum() * 0

    not_a_model = 3

    def no_model():
        return 3

    def broken():
        raise KeyError("weights")
"""


@pytest.fixture
def net(tmp_path) -> Path:
    """A user's file with a network, its inputs and its data."""
    path = tmp_path / "net.py"
    path.write_text(dedent(NET))
    return path
