"""Saved state comes back exactly, or not at all."""

import os
import random
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur as sec
from secateur.engine.checkpoint import load_state, restore_rng, rng_state, save_state
from secateur.errors import StoreError


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


def test_nested_state_round_trips_with_types_and_integer_keys(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "tensors": {"a": base, "view": base[:, 1], "flat": base.view(-1), "b.c": torch.ones(2)},
        "b": {"c": torch.zeros(0, 3), "$odd": 1},
        "tensors.a": torch.tensor(5, dtype=torch.int64),
        "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {"beta": (0.9, 0.999)}},
        "types": [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.bool, torch.uint8)],
        "plain": [None, True, 3, 0.1, "é", [], {}, ()],
    }
    save_state(tmp_path / "deep" / "s.safetensors", state)
    assert equal(load_state(tmp_path / "deep" / "s.safetensors"), state)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.safetensors"]


def test_a_shared_tensor_is_stored_once_and_shared_again(tmp_path):
    weight = torch.randn(100, 100)
    save_state(tmp_path / "s", {"a": weight, "b": {"c": weight}})
    loaded = load_state(tmp_path / "s")
    assert loaded["a"] is loaded["b"]["c"]
    assert (tmp_path / "s").stat().st_size < 41_000


def test_adamw_state_loads_into_another_optimizer(tmp_path):
    model = nn.Linear(3, 3)
    first = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    first.step()
    save_state(tmp_path / "s", first.state_dict())
    second = torch.optim.AdamW(model.parameters(), lr=9.0)
    second.load_state_dict(load_state(tmp_path / "s"))
    assert equal(second.state_dict(), first.state_dict())


def test_random_generators_continue_where_they_were(tmp_path):
    save_state(tmp_path / "s", rng_state())
    drawn = (torch.randn(4), random.random(), random.gauss(0, 1), np.random.randn(3))
    restore_rng(load_state(tmp_path / "s"))
    again = (torch.randn(4), random.random(), random.gauss(0, 1), np.random.randn(3))
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:3] == again[1:3]
    assert (drawn[3] == again[3]).all()


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "s"
    save_state(path, {"w": torch.arange(1000.0), "step": 3})
    good = path.read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    for what, bad in {
        "truncated": good[:-100],
        "truncated in the header": good[:20],
        "empty": b"",
        "one bit of data": good[:-7] + bytes([good[-7] ^ 1]) + good[-6:],
        "the structure": good[: 8 + header].replace(b'step\\": 3', b'step\\": 4')
        + good[8 + header :],
    }.items():
        assert bad != good, what
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="delete it and start again"):
            load_state(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(StoreError, match="not a saved state"):
        load_state(path)
    with pytest.raises(StoreError, match="does not exist"):
        load_state(tmp_path / "missing")


def test_what_cannot_be_saved_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "s"
    save_state(path, {"step": 1})
    for bad, where in [
        ({"a": {"b": [0, object()]}}, r"state\.a\.b\.1 is a object"),
        ({"a": torch.empty(2, device="meta")}, r"state\.a is a .* on meta"),
        ({"a": {1.5: 2}}, r"state\.a has keys"),
    ]:
        with pytest.raises(StoreError, match=where):
            save_state(path, bad)
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "s"
    save_state(path, {"step": 1})

    def full(tensors, filename, metadata=None):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secateur.engine.checkpoint.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_every_file_has_the_rights_that_new_files_have(mask, tmp_path):
    before = os.umask(mask)
    try:
        (tmp_path / "ordinary").touch()
        save_state(tmp_path / "state.safetensors", {"w": torch.ones(2)})
        model = torch.nn.Linear(4, 4)
        sparsified = sec.sparsify(model, "magnitude", amount=0.5)
        sparsified.masks.save(tmp_path / "masks.safetensors")
        sparsified.save(tmp_path / "out")
        sec.trace(model, torch.ones(1, 4)).draw(tmp_path / "graph.svg")
    finally:
        os.umask(before)
    wanted = (tmp_path / "ordinary").stat().st_mode
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) == 7
    assert {p.name for p in written if p.stat().st_mode != wanted} == set()
