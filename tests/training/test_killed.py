"""A process that is killed at any moment and started again ends with the same bits."""

import subprocess
import sys
from pathlib import Path

import killable
import pytest
import torch

import secateur as sec
from secateur.engine.checkpoint import load_state
from secateur.errors import StoreError


def test_sigkill_at_random_moments_changes_no_bit(tmp_path) -> None:
    file, out = tmp_path / "state.safetensors", tmp_path / "out"
    command = [sys.executable, str(Path(killable.__file__)), str(file), str(out)]
    subprocess.run(command, check=True, timeout=240)
    found, expected = load_state(out), killable.train(None)
    assert found["first"] > 0
    for name, run in expected["runs"].items():
        for kind, tensors in run.items():
            for key, tensor in tensors.items():
                assert torch.equal(found["runs"][name][kind][key], tensor), (name, kind, key)


def test_a_state_that_does_not_fit_is_named_and_changes_nothing() -> None:
    run = killable.Run("rigl", None)
    run.step()
    state = run.handle.state_dict()
    weights = {n: p.detach().clone() for n, p in run.net.named_parameters()}
    for wrong, words in [
        (run.net.state_dict(), "no step, steps, .*the model's or the optimizer's"),
        ([1, 2], "a list is no state"),
        ({**state, "method": "set"}, "method 'set', this run's is 'rigl'"),
        ({**state, "steps": 99}, "steps=99"),
        ({**state, "target": 0.5}, "to amount=0.5, this one goes to"),
        ({**state, "masks": {"0.weight": torch.ones(2, 2)}}, r"another model: 0.weight .*\(2, 2\)"),
        ({**state, "masks": "none"}, "no masks"),
    ]:
        with pytest.raises(StoreError, match=words):
            run.handle.load_state_dict(wrong)
    assert all(torch.equal(p, weights[n]) for n, p in run.net.named_parameters())
    assert all(torch.equal(m, state["masks"][n]) for n, m in run.handle.masks.items())
    gated = killable.Run("l0", None)
    theirs = gated.handle.state_dict()
    theirs["gate"]["aux"]["0.weight"]["log_alpha"] = torch.zeros(3)
    with pytest.raises(StoreError, match="log_alpha"):
        gated.handle.load_state_dict(theirs)


def test_attaching_with_a_bad_state_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    for name in ("random", "l0"):
        with pytest.raises(StoreError, match="another model"):
            handle = sec.attach(net, optimizer, name, amount=0.5)
            state = handle.state_dict()
            handle.detach()
            with torch.no_grad():
                net.weight.copy_(before)
            state["masks"]["weight"] = torch.ones(1, 1, dtype=torch.bool)
            sec.attach(net, optimizer, name, amount=0.5, state=state)
        assert torch.equal(net.weight, before)
        assert not net._forward_pre_hooks and "_secateur_attached" not in optimizer.__dict__


def test_a_state_spares_the_scoring() -> None:
    net = torch.nn.Linear(6, 4)
    data = [(torch.randn(3, 6), torch.tensor([0, 1, 2]))]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "snip", amount=0.5, data=data)
    state = handle.state_dict()
    handle.detach()
    again = sec.attach(net, optimizer, "snip", amount=0.5, state=state)
    assert again.masks == handle.masks
