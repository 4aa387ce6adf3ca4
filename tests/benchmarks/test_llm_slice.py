"""The page of language models: cells, the authors' walk beside ours, and what the page computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.llm import authors, cell, page, store
from transformers import LlamaConfig, LlamaForCausalLM

import secateur as sec

# A class for one layer with the names that the authors' has: mean squares of inputs.
WRAPPER = """
import torch
class WrappedGPT:
    def __init__(self, layer):
        self.count, self.scaler_row = 0, torch.zeros(layer.weight.shape[1])
    def add_batch(self, inp, out):
        x = inp.reshape(-1, inp.shape[-1])
        self.scaler_row = self.scaler_row * self.count + x.square().sum(0)
        self.count += 1
        self.scaler_row = self.scaler_row / self.count
"""


@pytest.mark.parametrize("target", ["50%", "2:4"])
def test_their_walk_with_wandas_statistics_gives_our_masks(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "layerwrapper.py").write_text(WRAPPER)
    assert not authors.available("wanda")
    monkeypatch.setenv("WANDA", str(tmp_path))
    assert authors.available("wanda") and not authors.available("magnitude")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, max_position_embeddings=64)).eval()
    batches = [{"input_ids": torch.randint(0, 100, (1, 32))} for _ in range(4)]
    ours = sec.sparsify(model, "wanda", data=batches, progress=False, **cell.goal(target))
    found = authors.prune(model, "wanda", cell.goal(target), batches)
    assert found["sparsity"] == 0.5
    ours.masks.save(tmp_path / "masks.safetensors")
    assert cell.agreement(model, tmp_path / "masks.safetensors") == 1.0
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
    assert cell.agreement(model, tmp_path / "masks.safetensors") < 1.0
    assert cell.agreement(model, tmp_path / "nothing") is None


def made(method: str, wiki: float, **more: Any) -> dict[str, Any]:
    numbers = {"wiki": wiki, "web": 50.0, "choices": 0.5, "seconds": 100.0, "memory_mb": 200}
    return {"method": method, "target": "50%", **numbers, **more}


def test_the_page_says_what_the_cells_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CELLS", tmp_path / "cells.jsonl")
    for row in (
        {"method": "dense", "wiki": 20.0, "web": 30.0, "choices": 0.6, "records": {}},
        made("sparsegpt", 60.0),
        made("default", 99.0),
        made("default", 48.0, text=[{"prompt": "a", "dense": "b | c", "pruned": "d"}]),
        made("sparsegpt", 40.0, arguments={"scope": "fisher"}),
        made("wanda", 70.0),
        made("wanda", 74.0, seed=1),
        made("sparsegpt", 61.0, by="authors", agreement=0.995, seconds=50.0, memory_mb=400),
        made("sparsegpt", 61.61, by=cell.AGAIN, agreement=0.991),
    ):
        if row["method"] == "dense":
            row["records"] = {"wiki": _record()}
        store.append(row)
    cells = store.load()
    assert len(cells) == 8  # the newer of the two default cells counts
    text = page.made(cells)
    assert "| `default` | 48.0 | 50.0 | 50.0% | 30% | 100 | 200 |" in text
    assert "| `wanda` | 72.0 ± 2.8 | 50.0 ± 0.0 |" in text
    assert "| `sparsegpt` (scope='fisher') | 40.0 | 50.0 | 50.0% | 50% | 100 | 200 |" in text
    row = "| `sparsegpt` | 50% |"
    assert f"{row} ours | 99.5000% | 61.000 | 60.000 (-1.64%) | 2.00 | 0.50 |" in text
    assert f"{row} theirs, samples reversed | 99.1000% | 61.000 | 61.610 (+1.00%) |" in text
    assert "b / c" in text and text.index("`default`, 50%") > text.index("| dense | *a*")


def _record() -> dict[str, Any]:
    names = {"source": "wiki", "sha256": "0" * 64, "tokenizer": "T", "vocabulary": 9}
    return {**names, "vocabulary_sha256": "1" * 64, "number": 8, "length": 512}


def test_the_page_is_that_of_the_committed_cells() -> None:
    assert store.PAGE.read_text(encoding="utf-8") == page.made(store.load())
    for one in store.load().values():
        assert json.loads(json.dumps(one)) == one
        if one["method"] != "dense":
            wanted = float(one["target"].strip("%")) / 100 if "%" in one["target"] else 0.5
            assert one["sparsity"] == pytest.approx(wanted, abs=2e-3)
