"""The page of the sentence encoder: halves, figures against loops, a tiny encoder pruned."""

from types import SimpleNamespace

import torch
from benchmarks.encoder import __main__ as page
from benchmarks.encoder import cell
from torch import nn
from transformers import BertConfig, BertModel


def tiny() -> cell.Encoder:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        vocab_size=60, max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    return cell.Encoder(BertModel(config, add_pooling_layer=False)).eval()


def texts() -> dict:
    torch.manual_seed(1)
    tokenizer = SimpleNamespace(cls_token_id=1, sep_token_id=2)
    ids = cell.halves(torch.randint(3, 60, (8, 2 * cell.HALF)), tokenizer)
    batches = [{"input_ids": ids, "labels": torch.arange(8)}]
    return {"batches": batches, "wiki": ids, "web": ids.flip(1)}


def test_a_passage_is_two_texts_of_its_own() -> None:
    pieces = torch.arange(2 * 2 * cell.HALF).view(2, -1) + 3
    ids = cell.halves(pieces, SimpleNamespace(cls_token_id=1, sep_token_id=2))
    assert ids.shape == (4, cell.HALF + 2)
    assert ids[:, 0].tolist() == [1] * 4 and ids[:, -1].tolist() == [2] * 4
    for passage in range(2):
        joined = torch.cat([ids[passage, 1:-1], ids[2 + passage, 1:-1]])
        assert torch.equal(joined, pieces[passage])


def test_the_figures_are_those_of_loops() -> None:
    torch.manual_seed(0)
    dense, found = (nn.functional.normalize(torch.randn(12, 5), dim=1) for _ in range(2))
    hits = 0
    for i in range(6):
        best = max(range(6), key=lambda j: float(found[i] @ found[6 + j]))
        hits += best == i
    cosine = sum(float(a @ b) for a, b in zip(found, dense, strict=True)) / 12
    got = cell.judged(found, dense)
    assert got == {"cosine": round(cosine, 4), "retrieval": round(hits / 6, 4)}


def test_every_kind_of_cell_runs_and_is_on_the_page() -> None:
    given, dense = texts(), tiny()
    before = {n: p.clone() for n, p in dense.named_parameters()}
    record = {"source": "s", "number": 8, "length": 60, "sha256": "0" * 64}
    done = {}
    for wanted in page.WANTED:
        if wanted["method"] in ("dense", "wanda", "default", "mask_tuning", "evopress"):
            made = cell.measure(wanted, given, dense) | {"records": {"wiki": record}}
            done[page.key(made)] = made
    assert all(torch.equal(p, before[n]) for n, p in dense.named_parameters())
    whole = done[page.key({"method": "dense"})]
    assert whole["wiki"]["cosine"] == whole["web"]["cosine"] == 1.0
    for made in done.values():
        if "goal" in made:
            asked = made["goal"].get("amount", 0.5)  # the patterns keep half
            assert abs(made["sparsity"] - asked) < 0.01 and made["wiki"]["cosine"] < 1
        elif "proof" in made:
            assert made["proof"]["ok"] and made["parameters"] < whole["parameters"]
    written = page.page(done)
    assert written.count("| `wanda` |") == len(page.LEVELS) and "proven to" in written
    assert "one block of the six" in written
