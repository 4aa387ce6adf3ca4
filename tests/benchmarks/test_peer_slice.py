"""The comparison with the peer: its check can fail, and its page says what the cells hold."""

import copy
from pathlib import Path

import pytest
import torch
from benchmarks.peer_structural.judge import fill, judge, label
from benchmarks.peer_structural.libraries import LIBRARIES, Clock
from benchmarks.peer_structural.page import page
from benchmarks.peer_structural.store import append, load
from torch import nn

from benchmarks import llm_memory


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_libraries_prune_half_and_are_judged_by_the_same_check(library: str) -> None:
    if library == "torch-pruning":
        pytest.importorskip("torch_pruning")
    dense, x = network(), torch.randn(5, 4)
    small, clock = copy.deepcopy(dense), Clock()
    LIBRARIES[library](small, ((x,), {}), ["2"], clock, "random", label)
    places = fill(small, dense)
    assert small[0].out_features == 4 and set(clock.seconds) >= {"graph", "plan", "apply"}
    assert judge(dense, small, places, (x,), {})["verdict"] == "right"
    with torch.no_grad():
        small[2].weight[0, 0] += 1.0
    assert judge(dense, small, places, (x,), {})["verdict"] == "wrong"


def test_a_cell_that_was_cut_off_is_not_finished(tmp_path: Path) -> None:
    append("times", {"model": "a"}, tmp_path)
    with (tmp_path / "times.jsonl").open("a") as file:
        file.write('{"model": "b')
    assert load("times", tmp_path) == [{"model": "a"}]


def test_the_page_gives_medians_and_our_losses() -> None:
    def cell(run: str, seconds: float) -> dict:
        cpu = {"graph": seconds, "plan": 0.0, "apply": 0.0}
        facts = {"wall": seconds, "built_mb": 1, "peak_mb": 2, "runs": True}
        return {"model": "resnet50", "run": run, "cpu": cpu, **facts}

    times = [cell("secateur", s) for s in (2.0, 9.0, 1.0)] + [cell("torch-pruning", 1.0)]
    text = page(
        [*times, {"model": "swin_t", "run": "torch-pruning", "cause": "no end"}], None, [], []
    )
    ours, theirs = (line for line in text.splitlines() if line.startswith("| ResNet-50"))
    assert "| 3 | 2.00 |" in ours
    assert "| 0.5 |" in theirs  # half of our time: we are slower
    assert "no end" in text


def test_planning_a_llama_without_weights_is_measured_in_a_child() -> None:
    pytest.importorskip("transformers")
    shape = llm_memory.SHAPE | {"num_hidden_layers": 1, "vocab_size": 100}
    facts = llm_memory.child(shape)
    assert facts["classes_pruned"] > 0 and facts["parameters"] > 2e8
    assert (
        facts["before_mb"] <= facts["peak_mb"] < facts["before_mb"] + 4 * facts["parameters"] / 1e6
    )
