"""How many queries share a key is read only under a padding mask; it is right all the same."""

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.plan.store import load, save

transformers = pytest.importorskip("transformers")


def llama(keys: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=31, hidden_size=32, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=keys,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["query", "head"])
def test_padded_batches_are_those_of_the_masked_model(kind: str, tmp_path: Path) -> None:
    model, ids = llama(), torch.arange(10).reshape(2, 5)
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    plan = sec.plan(sec.trace(model, {"input_ids": ids}), amount=0.5, kinds=kind).prepared()
    small = plan.apply(model)
    again = load(llama, save(tmp_path / "out", small, plan)).eval()
    with torch.no_grad(), sec.masked(model, plan):
        expected = model(input_ids=ids, attention_mask=padding).logits[:, 2:]
    with torch.no_grad():
        for pruned in (small, again):
            found = pruned(input_ids=ids, attention_mask=padding).logits[:, 2:]
            torch.testing.assert_close(found, expected)
    attention = small.model.layers[0].self_attn
    shared = attention.q_proj.out_features // attention.k_proj.out_features
    assert attention.num_key_value_groups == shared == {"query": 1, "head": 2}[kind]


def test_queries_of_a_single_key_are_heads() -> None:
    model, ids = llama(1), torch.arange(10).reshape(2, 5)
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    plan = sec.plan(sec.trace(model, {"input_ids": ids}), amount=0.5, kinds="head").prepared()
    small = plan.apply(model)
    with torch.no_grad(), sec.masked(model, plan):
        expected = model(input_ids=ids, attention_mask=padding).logits[:, 2:]
    with torch.no_grad():
        found = small(input_ids=ids, attention_mask=padding).logits[:, 2:]
    torch.testing.assert_close(found, expected)
    assert small.model.layers[0].self_attn.num_key_value_groups == 2
