"""Two processes of Accelerate agree on every mask and train what one process would."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
accelerated = pytest.importorskip("accelerated")

from secateur.engine.checkpoint import load_state  # noqa: E402


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = f"{tmp_path_factory.mktemp('accelerated')}/"
    command = [sys.executable, str(Path(accelerated.__file__)), out]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_state(out + rank) for rank in "01"]


@pytest.mark.parametrize("name", accelerated.METHODS)
def test_two_processes_equal_one(both: list[dict], name: str) -> None:
    first, second = (each[name] for each in both)
    net, masks, steps = accelerated.run(name, 16)
    assert first["steps"] == second["steps"] == steps == 6
    for key, mask in masks.items():
        assert torch.equal(first["masks"][key], mask), key
        assert torch.equal(second["masks"][key], mask), key
    for key, value in net.state_dict().items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-4, atol=1e-6)
