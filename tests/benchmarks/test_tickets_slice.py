"""A small slice of the benchmark of tickets runs, and its page is that of the committed cells."""

import json

import pytest
import torch
from benchmarks.tickets import experiments
from benchmarks.tickets.__main__ import PAGE, load
from benchmarks.tickets.page import page
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec


@pytest.fixture
def short(monkeypatch):
    """Two batches an epoch, one epoch, two rounds."""
    data = sec.zoo.load_data("fashion_mnist", "train")
    images, labels = data[:128]
    small = DataLoader(TensorDataset(images, labels), 64, shuffle=True)
    monkeypatch.setattr(experiments, "loader", lambda network="lenet300": small)
    monkeypatch.setattr(experiments, "test", lambda: data[128:256])
    monkeypatch.setattr(experiments, "EPOCHS", {"lenet300": 1})
    monkeypatch.setattr(experiments, "ROUNDS", 2)
    monkeypatch.setattr(experiments, "LAST", 0.75)
    monkeypatch.setattr(experiments, "AMOUNTS", (0.5, 0.9))
    monkeypatch.setattr(experiments, "RETRAIN", 1)
    experiments.dense.cache_clear()
    yield
    experiments.dense.cache_clear()


def test_cells_run_and_are_json(short, tmp_path) -> None:
    torch.set_num_threads(1)
    rewound = experiments.search("rewind", 0, tmp_path)
    fresh = experiments.again(0, tmp_path, shuffled=False)
    assert rewound["removed"] == fresh["removed"] == [0.5, 0.75]
    curve = experiments.regularised("l1", 0, tmp_path, iterative=True)
    assert len(curve["bare"]) == len(curve["accuracy"]) == 2
    json.dumps([rewound, fresh, curve])


def test_the_page_is_that_of_the_cells() -> None:
    cells = load()
    assert cells.keys() <= experiments.cells().keys()
    assert PAGE.read_text(encoding="utf-8") == page(cells)
    for key, row in cells.items():
        if key.startswith("search"):
            assert max(row["accuracy"]) < 1
            assert f"{100 * row['accuracy'][0]:.1f}" in page({key: row})
