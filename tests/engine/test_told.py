"""A method of weights alone prunes what methods that run data prune."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import secateur as sec
from secateur.methods.shares import shares

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def qwen() -> nn.Module:
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts))


def oss() -> nn.Module:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 4}
    return GptOssForCausalLM(GptOssConfig(**SIZES, **experts))


def gpt2() -> nn.Module:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=64, **ends)
    )


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def torchs() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("make", [qwen, oss, gpt2, llama, torchs])
def test_weights_alone_prune_the_layers_that_data_show(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(3, 64, (4, 32))
    data = [torch.randn(4, 8, 16)] if make is torchs else [{"input_ids": ids}]
    how: dict[str, Any] = {"amount": 0.5, "progress": False}
    alone = sec.sparsify(model, "magnitude", **how)
    seen = sec.sparsify(model, "wanda", data=data, **how)
    assert {r.layer: r.total for r in alone.report.rows} == {
        r.layer: r.total for r in seen.report.rows
    }
    assert not alone.report.notes
    assert alone.masks.keys() == seen.masks.keys()
    assert shares(model, "global", 0.5, []).keys() == {r.layer for r in alone.report.rows}


def test_rows_are_outputs_however_experts_are_stored() -> None:
    torch.manual_seed(0)
    down = "model.layers.0.mlp.experts.down_proj"
    for make, inputs in ((qwen, 2), (oss, 1)):
        masks = sec.sparsify(make(), "magnitude", pattern="2:4", progress=False).masks
        assert bool((masks[down].movedim(inputs, -1).unflatten(-1, (-1, 4)).sum(-1) == 2).all())


def test_what_no_class_tells_is_said() -> None:
    mamba = MambaForCausalLM(MambaConfig(num_hidden_layers=2, hidden_size=32, vocab_size=64))
    notes = sec.sparsify(mamba, "magnitude", amount=0.5, progress=False).report.notes
    assert [n.split(" ")[0] for n in notes] == [
        f"backbone.layers.{k}.mixer.A_log" for k in range(2)
    ]
