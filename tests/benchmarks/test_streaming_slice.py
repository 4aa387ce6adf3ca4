"""The benchmark of streaming on a tiny checkpoint, and its page as its cells say."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks import llm_streaming
from secateur.engine.shards import open_shards

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


def test_a_tiny_checkpoint_is_written_and_pruned(tmp_path: Path) -> None:
    dense, out = tmp_path / "dense", tmp_path / "out"
    parameters = llm_streaming.write_checkpoint(dense, TINY, shard=8_000)
    shards = open_shards(dense)
    assert len(shards.files) > 3 and 2 * parameters < shards.bytes < 3 * parameters
    cell = llm_streaming.prune(dense, out, "wanda")
    assert cell["sparsity"] == 0.5 and cell["blocks"] == 2 and cell["layers"] == 14
    found = dict(llm_streaming.zeros(out))
    assert len(found) == 14 and all(abs(part - 0.5) < 1e-6 for part in found.values())
    assert llm_streaming.finished(out) == []


def test_the_page_is_that_of_the_cells() -> None:
    cells = json.loads(llm_streaming.CELLS.read_text())
    assert llm_streaming.PAGE.read_text(encoding="utf-8") == llm_streaming.page(cells)
    assert cells["parameters"] >= 3e9 and cells["killed"]["killed"]
    everything = {
        **cells, "resumed": cells["killed"], "at_once": cells["killed"], "kept": 14,
        "zeros": [0.5, 0.5, 196], "source_untouched": True, "same_bits": True,
    }  # fmt: skip
    assert "Not run" not in llm_streaming.page(everything)
    del everything["at_once"]
    assert "Not run at this size yet: all of it at once" in llm_streaming.page(everything)
