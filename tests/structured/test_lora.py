"""LoRA: what is trained, what is merged, and what stays."""

import copy
from typing import Any

import pytest
import torch
from tiny import batches, llama, logits, tokens
from torch import nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import ConfigError, DataError
from secateur.recovery import Distil, FineTune
from secateur.recovery.lora import LoRA, LowRank

TRAINING = FineTune(steps=12, optimizer="adamw", lr=5e-3, progress=False)


def test_what_is_merged_is_what_was_trained() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    product = LowRank(layer.weight, 2, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(product(layer.weight), layer.weight)
    nn.init.normal_(product.b)
    x = torch.randn(5, 6)
    expected = layer(x) + 0.5 * x @ product.a.T @ product.b.T
    assert_close(nn.functional.linear(x, product(layer.weight), layer.bias), expected)


@pytest.mark.parametrize("base", [TRAINING, Distil(alpha=0.5, base=TRAINING)])
def test_a_pruned_model_is_healed_by_changes_of_low_rank(base: Any) -> None:
    model, data = llama(2), batches(4)
    how: dict[str, Any] = {"data": data, "progress": False, "measure": False, "amount": 0.3}
    inputs = {"input_ids": tokens()}
    bare = sec.prune(model, inputs, method="wanda_sp", recovery="none", **how).model
    result = sec.prune(model, inputs, method="wanda_sp", recovery=LoRA(rank=3, base=base), **how)
    healed = result.model

    def loss(m: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(m(**batch).loss) for batch in data)

    assert loss(healed) < loss(bare)
    before, after = bare.state_dict(), healed.state_dict()
    assert before.keys() == after.keys()
    ranks = {n: int(torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4))
             for n in before if before[n].dim() == 2}  # fmt: skip
    assert set(ranks.values()) <= {0, 1, 2, 3} and max(ranks.values()) == 3
    assert ranks["model.embed_tokens.weight"] == 0
    assert all(p.requires_grad for p in healed.parameters())
    assert type(healed.model.layers[0].mlp.up_proj) is nn.Linear
    assert_close(logits(copy.deepcopy(healed)), logits(healed))
    assert result.history[0]["recovery"][0]["recovery"] == "lora"


def test_tied_weights_are_left_alone_and_globs_choose() -> None:
    model = llama(2, tie_word_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    report = LoRA(layers=["*.q_proj", "*lm_head"], base=TRAINING).heal(model, data=batches(2))
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"model.layers.{k}.self_attn.q_proj.weight" for k in range(2)}
    assert report["layers"] == 2


def test_an_error_gives_the_model_back_as_it_came() -> None:
    model = llama(2)
    model.lm_head.weight.requires_grad_(False)
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(DataError):
        LoRA(base=TRAINING).heal(model, data=[])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    for how, words in (
        (LoRA(rank=0), "1 or more"),
        (LoRA(layers=["nothing"]), "no linear layer"),
    ):
        with pytest.raises(ConfigError, match=words):
            how.heal(model, data=batches(1))
    with pytest.raises(ConfigError, match="fills the zeros"):
        LoRA().heal(model, sec.MaskSet({"x": torch.ones(1, dtype=torch.bool)}), batches(1))
