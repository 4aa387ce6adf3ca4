"""Two real processes: they agree on every mask, and train what one process would."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import joined
import pytest
import torch

from secateur.engine.checkpoint import load_state


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found, all runs in one start of them."""
    folder = tmp_path_factory.mktemp("joined")
    command = [sys.executable, str(Path(joined.__file__)), str(folder / "meeting"), f"{folder}/"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_state(folder / rank) for rank in "01"]


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.parametrize("name", joined.GROUPS)
def test_ranks_agree_and_equal_one_process(both: Any, name: str) -> None:
    first, second = (each["ddp"][name] for each in both)
    assert same(first["masks"], second["masks"])
    assert same(first["weights"], second["weights"])
    alone = joined.run(name, 0, 1)
    assert same(first["masks"], alone["masks"])
    torch.testing.assert_close(first["weights"], dict(alone["weights"]), rtol=1e-4, atol=1e-5)
    assert any(not bool(m.all()) for m in first["masks"].values())


@pytest.mark.parametrize("name", joined.SHARDED)
def test_masks_hold_on_shards_and_survive_a_resume(both: Any, name: str) -> None:
    first, second = (each["shards"][name] for each in both)
    assert all(first["held"]) and all(second["held"])
    assert same(first["masks"], second["masks"]) and same(first["weights"], second["weights"])
    net = joined.build()
    options = {"every": 2} if name in ("rigl", "set") else {}
    optimizer, handle = joined.attach(net, name, 0, 1, amount=0.7, **options)
    for _ in joined.train(net, optimizer, joined.batches(3, 0, 1)):
        pass
    assert same(first["masks"], dict(handle.finish().masks))
    torch.testing.assert_close(first["weights"], dict(net.state_dict()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("seed", "disagree about the seed: rank 1 .* attach alike on every rank"),
        ("amount", "disagree about the amount"),
        ("weights", "disagree about the mask of .*same weights"),
        ("file", "disagree about the step to resume at.*same resume file"),
        ("drift", "disagree about the mask of .* averaged gradients"),
    ],
)
def test_ranks_that_disagree_are_all_told(both: Any, what: str, words: str) -> None:
    told = [each["mistakes"][what] for each in both]
    assert told[0] == told[1]
    assert told[0].startswith("ConfigError: the ranks ") and re.search(words, told[0])


def test_a_step_that_one_rank_cannot_take_is_skipped_by_all(both: Any) -> None:
    assert [each["broken"] for each in both] == [{"skipped": 1, "same": True}] * 2


@pytest.mark.parametrize("name", ["snip", "edge_popup"])
def test_what_needs_the_whole_model_refuses_shards(both: Any, name: str) -> None:
    for each in both:
        told = each["refused"][name]
        assert told.startswith("ConfigError") and "is sharded" in told and "fully_shard" in told
