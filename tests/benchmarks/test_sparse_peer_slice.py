"""The comparison with torch's own pruning: a slice of it runs, and its page says what it holds."""

import json

import pytest
from benchmarks.peer_sparse import cells
from benchmarks.peer_sparse.__main__ import CELLS, PAGE
from benchmarks.peer_sparse.page import page
from benchmarks.peer_sparse.tools import TOOLS

OURS = [tool for tool in TOOLS if tool.startswith("secateur")]


def test_the_values_of_jaxpruners_tests_are_ours() -> None:
    found = cells.goldens()
    assert len(found) == 8
    for row in found:
        assert row["equal"], row


@pytest.mark.parametrize("tool", OURS)
def test_our_state_dicts_are_those_of_the_plain_network(tool: str) -> None:
    row = cells.states(tool)
    assert (row["renamed"], row["added"], row["bytes"]) == (0, 0, 1.0)
    assert row["loads"] and row["copies"] and row["plain at the end"]
    assert row["dirty slots"] == "0 of 3"


def test_the_facts_about_the_peers_can_be_seen() -> None:
    row = cells.states("torch.nn.utils.prune")
    assert row["renamed"] == 3 and row["added"] == 6 and not row["loads"]
    assert row["bytes"] > 1.9 and row["zeros at the end"] > 0.89


def test_memory_does_not_grow() -> None:
    for tool in OURS[1:]:  # masks that change
        sizes = cells.growth(tool, "lenet300", (2, 4, 6))["bytes"]
        assert sizes[0] > 0 and sizes == [sizes[0]] * 3, tool


def test_steps_are_timed_in_turns() -> None:
    times = cells.step_times("lenet300", 3, warmup=1)
    assert set(times) == set(TOOLS) and all(len(t) == 3 and min(t) > 0 for t in times.values())
    assert "invalid for input" in cells.cause("torch.ao.pruning", "resnet8")
    rows = cells.summary({"plain": [1.0, 2.0, 3.0], "secateur, fixed masks": [2.0, 2.0, 9.0]})
    assert rows[1]["ratio"] == 1.0 and rows[0]["ratio"] == 1.0


def test_the_page_is_that_of_its_cells() -> None:
    found = json.loads(CELLS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(found)
    rows = [
        {"tool": "plain", "ms": 1.0, "ratio": 1.0, "p10": 1.0, "p90": 1.0, "rounds": 9},
        {"tool": "fixed masks", "ms": 1.2, "ratio": 1.2, "p10": 1.0, "p90": 2.0, "rounds": 9},
    ]
    assert "not met: fixed masks take +20.0%" in page({"times x": rows})
