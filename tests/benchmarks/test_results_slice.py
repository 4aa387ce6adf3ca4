"""The results page: cells are what they say, survive a kill, and the page says what they hold."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.results import __main__ as program
from benchmarks.results import cell as cells
from benchmarks.results import store, tables
from benchmarks.results.cell import Cell
from benchmarks.results.page import READING, page
from torch import nn

import secateur as sec
from secateur import zoo

TINY = Cell("lenet300", "l2", 0.5, limit=128)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    torch.set_num_threads(1)
    return cells.run(TINY)


def test_a_cell_has_the_budget_the_proof_and_the_accuracy_of_its_own_network(result):
    dense = zoo.load("lenet300")
    plan = sec.plan(sec.trace(dense, zoo.example_inputs("lenet300", 2)), keep={"macs": 0.5})
    small = plan.apply()
    # counted by hand: a linear layer multiplies each of its weights once a sample
    macs, kept = (
        sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        for model in (dense, small)
    )
    assert result["macs"] == {"dense": cells.TIMED * macs, "pruned": cells.TIMED * kept}
    assert 0.49 <= kept / macs <= 0.51
    assert result["verification"]["ok"] and result["verification"]["error"] < 1e-4
    images, labels = zoo.load_data("fashion_mnist", "test")[:]
    with torch.no_grad():
        right = [(m(images).argmax(1) == labels).float().mean().item() for m in (dense, small)]
    assert result["accuracy"]["dense"] == pytest.approx(right[0], abs=1e-6)
    assert result["accuracy"]["pruned"] == pytest.approx(right[1], abs=1e-6)
    assert result["accuracy"]["healed"] != result["accuracy"]["pruned"]
    assert json.loads(json.dumps(result)) == result


def test_new_weights_are_no_better_than_chance_before_training():
    scratch = cells.run(replace(TINY, fresh=True, recovery=()))
    assert scratch["verification"]["ok"]
    assert scratch["accuracy"]["healed"] == scratch["accuracy"]["pruned"] < 0.35


def test_a_finished_cell_is_found_again_and_others_are_not(result, tmp_path):
    path = store.write(TINY, result, tmp_path)
    assert store.read(TINY, tmp_path) == result
    assert store.read(replace(TINY, seed=1), tmp_path) is None
    path.write_text(path.read_text()[:100])
    assert store.read(TINY, tmp_path) is None, "a damaged file counts as missing"
    stale = result | {"settings": result["settings"] | {"epochs": 99}}
    store.write(TINY, stale, tmp_path)
    assert store.read(TINY, tmp_path) is None, "so does one of other settings"
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


def test_a_killed_run_goes_on_where_it_was(result, tmp_path, monkeypatch):
    ran: list[Cell] = []

    def interrupted(cell: Cell) -> dict[str, Any]:
        if len(ran) == 1:
            raise KeyboardInterrupt
        return again(cell)

    def again(cell: Cell) -> dict[str, Any]:
        ran.append(cell)
        return result | {"settings": cell.settings()}

    wanted = [replace(TINY, seed=seed) for seed in range(3)]
    monkeypatch.setattr(tables, "TABLES", {"cnn": lambda: wanted})
    arguments = ["cnn", "--embedded", "--cells", f"{tmp_path}/cells", "--out", f"{tmp_path}/p.md"]
    monkeypatch.setattr(cells, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.main(arguments)
    monkeypatch.setattr(cells, "run", again)
    program.main([*arguments, "--page"])
    assert "1 of 3 cells of this table are finished" in (tmp_path / "p.md").read_text()
    program.main(arguments)
    assert ran == wanted, "each cell ran once"
    assert "cells of this table are finished" not in (tmp_path / "p.md").read_text()


def test_mean_spread_and_difference_to_random_are_those_of_the_cells(result):
    healed = {"random": [0.90, 0.91, 0.89], "l2": [0.92, 0.92, 0.91]}
    rows = []
    for name, scores in healed.items():
        for seed, score in enumerate(scores):
            cell = Cell("resnet20", name, 0.5, seed)
            accuracy = result["accuracy"] | {"healed": score}
            rows.append((cell, result | {"accuracy": accuracy}))
    (line,) = (x for x in page({"cnn": rows}, {"cnn": 6}).splitlines() if x.startswith("| l2 |"))
    of = np.array(healed["l2"])
    gain = of - np.array(healed["random"])
    assert f"| {100 * of.mean():.2f} ± {100 * of.std(ddof=1):.2f} |" in line
    assert f"| {100 * gain.mean():+.2f} ± {100 * gain.std(ddof=1):.2f} |" in line


def test_no_two_different_cells_share_a_file():
    every = {c for table in tables.TABLES.values() for c in table()}
    assert len({c.name for c in every}) == len(every) > 60


def test_the_committed_page_is_what_the_committed_cells_say(tmp_path):
    out = tmp_path / "results.md"
    program.main(["--page", "--out", str(out)])
    committed = Path(program.PAGE).read_text()
    assert out.read_text() == committed, "run: python -m benchmarks.results --page"


def test_every_figure_of_the_text_is_in_a_table():
    text = READING.read_text()
    tables_only = Path(program.PAGE).read_text().replace(text, "")
    figures = set(re.findall(r"\d+\.\d+", text))
    known = set(re.findall(r"\d+\.\d+", tables_only))
    assert len(figures) > 10
    rounded = {"0.2", "0.3", "0.5", "0.6", "0.7", "1.1", "1.5", "1.6", "3.7"}
    assert figures - known <= rounded, "a figure of the text is stale"
