"""Training is seeded, learns, and writes what it measured."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from secateur import zoo
from secateur.errors import DataError
from secateur.zoo import document, prepare, registry
from secateur.zoo import train as training
from secateur.zoo.data import wordnet
from secateur.zoo.networks import gcn


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(gcn, "RECIPE", dataclasses.replace(gcn.RECIPE, epochs=4))


def test_the_same_seed_gives_the_same_weights(short):
    one, same, other = (training.train("gcn", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["conv1.lin.weight"], other["conv1.lin.weight"])


def test_the_card_is_of_the_written_file(short, tmp_path, monkeypatch):
    model = training.train("gcn")
    card = training.write(model, "gcn", tmp_path, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gcn.json", "gcn.safetensors"]
    assert json.loads((tmp_path / "gcn.json").read_text()) == card
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    assert zoo.evaluate(zoo.load("gcn"), "gcn") == pytest.approx(card["accuracy"], abs=1e-5)
    assert card["accuracy_full"] is None and card["test_samples"] == 3500 - 7 * wordnet.LABELLED


def test_the_command_trains_and_writes(short, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "gcn", "--seed", "3", "--out", str(tmp_path)])
    training.main()
    card = json.loads((tmp_path / "gcn.json").read_text())
    assert card["command"] == "python -m secateur.zoo.train gcn --seed 3"
    assert card["train_samples"] == 7 * wordnet.LABELLED and card["recipe"]["epochs"] == 4
    assert 1 / 7 < card["accuracy"] <= 1


def test_nothing_is_written_when_the_full_data_are_missing(tmp_path, monkeypatch):
    def missing(*_):
        raise DataError("the full set is not here")

    monkeypatch.setattr(registry.data_set("fashion_mnist"), "load", missing)
    monkeypatch.setattr(sys, "argv", ["train", "lenet5", "--out", str(tmp_path)])
    with pytest.raises(DataError):
        training.main()
    assert not list(tmp_path.iterdir())


def test_biases_and_norms_are_not_decayed():
    model = zoo.build("resnet8")
    decayed, free = training._optimizer(model, registry.network("resnet8").RECIPE).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4} and decayed["weight_decay"] > 0
    assert {p.ndim for p in free["params"]} == {1} and free["weight_decay"] == 0


def test_the_page_keeps_its_text_around_the_table(tmp_path, monkeypatch):
    page = tmp_path / "zoo.md"
    page.write_text(f"before\n{document.START}\nold\n{document.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["document", str(page)])
    document.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert document.table() in text and "old" not in text


NOUNS = """\
  1 a licence line
00000010 05 n 01 cat 0 002 @ 00000020 n 0000 ~ 00000030 n 0000 | a small furry animal
00000020 18 n 02 cook 0 chef 1 001 @ 00000040 n 0000 | someone who makes food; "a chef"
00000040 03 n 01 thing 0 000 | a class that is not used
"""


def test_nouns_are_read_with_their_relations(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    kinds, glosses, neighbours = wordnet._nouns(tmp_path / "data.noun")
    assert kinds == {10: 5, 20: 18}
    assert glosses[10] == {"small", "furry", "animal"}
    assert neighbours == {10: {20}, 20: {10}}


def test_a_prepared_file_has_the_same_bytes_each_time(tmp_path, monkeypatch):
    (tmp_path / "data" / "files").mkdir(parents=True)
    monkeypatch.setattr(prepare, "HERE", tmp_path)
    arrays = {"a": np.arange(5), "b": np.eye(3)}
    monkeypatch.setattr(wordnet, "prepare", lambda source: arrays)
    monkeypatch.setattr(sys, "argv", ["prepare", "wordnet", str(tmp_path)])
    path = tmp_path / "data" / "files" / "wordnet.npz"
    prepare.main()
    first = path.read_bytes()
    prepare.main()
    assert path.read_bytes() == first
    with np.load(path, allow_pickle=False) as stored:
        assert (stored["b"] == np.eye(3)).all()
