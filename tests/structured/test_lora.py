"""LoRA: what is trained, what is merged, and what stays."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, gpt2, llama, logits, tokens
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


@pytest.mark.parametrize("method", ["wanda_sp", "flap", "shortgpt"])
def test_the_lora_of_peft_trains_what_is_left_and_is_merged_and_saved(
    method: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model, data = llama(3), batches(2)
    how: dict[str, Any] = {"data": data, "progress": False, "measure": False, "amount": 0.34}
    result = sec.prune(model, {"input_ids": tokens()}, method=method, **how)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"])
    wrapped = peft.get_peft_model(result.model, config)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        loss = wrapped(**data[0]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    healed = wrapped.eval().merge_and_unload()
    loaded = sec.load(llama(3), sec.save(tmp_path / "out", healed, result.plan))
    assert_close(logits(loaded), logits(healed), rtol=0, atol=0)


def test_gpt2_whose_weights_are_stored_the_other_way_round_is_healed() -> None:
    model, data = gpt2(), batches(4)
    trained: list[torch.Tensor] = []

    class Base(FineTune):
        def heal(self, model: nn.Module, *rest: Any) -> Any:
            report = super().heal(model, *rest)
            trained.append(logits(model.eval()))
            return report

    base = Base(steps=12, optimizer="adamw", lr=5e-3, progress=False)
    result = sec.prune(
        model, {"input_ids": tokens()}, method="wanda_sp", amount=0.3, data=data, measure=False,
        progress=False, recovery=LoRA(rank=3, base=base),
    )  # fmt: skip
    assert_close(logits(result.model), trained[0], rtol=1e-4, atol=1e-5)
    assert type(result.model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
    layer = model.transformer.h[0].mlp.c_fc  # 32 to 128
    product = LowRank(layer.weight, 2, 1.0, torch.Generator().manual_seed(0), transposed=True)
    assert product.a.shape == (2, 32) and product.b.shape == (128, 2)


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
