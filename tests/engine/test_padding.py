"""Padding is no token: the same texts padded give the same pruned model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import secateur as sec
from secateur.engine.padding import Tokens
from secateur.engine.sequential import walk
from secateur.methods.after.evopress import _distance as distance
from secateur.methods.after.evopress import _said as said
from secateur.methods.after.reap import saliency
from secateur.methods.after.shortgpt import block_influence
from secateur.methods.droppable import depth_of

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **SIZES)).eval()


def qwen() -> nn.Module:
    torch.manual_seed(0)
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(num_hidden_layers=2, head_dim=8, **experts, **SIZES)
    return Qwen3MoeForCausalLM(config).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(
        num_layers=2, num_decoder_layers=2, d_model=32, d_ff=48, num_heads=4, d_kv=8, vocab_size=64,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def texts(padding: int = 0, ragged: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (4, 8), generator=generator)
    mask = torch.ones_like(ids)
    if ragged:
        mask[1, 5:] = 0
        mask[2, 3:] = 0
    return [{"input_ids": F.pad(ids, (0, padding)), "attention_mask": F.pad(mask, (0, padding))}]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "method", ["flap", "wanda_sp", "minitron", "width", "mask_tuning", "shortgpt", "evopress"]
)
def test_structured_methods_see_no_padding(method: str, ragged: bool) -> None:
    net = llama()
    given = {"input_ids": texts()[0]["input_ids"]}
    clean, padded = (
        sec.prune(net, given, method=method, amount=0.3, data=texts(n, ragged), verify=False,
                  measure=False, progress=False).model.state_dict()
        for n in (0, 40)
    )  # fmt: skip
    assert clean.keys() == padded.keys()
    for name, weight in clean.items():
        assert_close(padded[name], weight, rtol=1e-3, atol=1e-5)


def test_depth_is_judged_by_tokens() -> None:
    clean, padded = (depth_of(llama(), texts(n, True)) for n in (0, 40))
    assert_close(block_influence(padded), block_influence(clean), rtol=1e-6, atol=1e-9)
    moved = []
    for depth in (clean, padded):
        (batch,) = depth.batches
        dense, pruned = (said(depth, batch, gaps) for gaps in ((), depth.candidates[:1]))
        moved.append(distance(dense, pruned))
    assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-7)


def test_least_squares_sees_no_padding() -> None:
    net = llama()
    given = {"input_ids": texts()[0]["input_ids"]}
    clean, padded = (
        sec.prune(net, given, method="wanda_sp", amount=0.3, data=texts(n), verify=False,
                  measure=False, progress=False, recovery="least-squares").model.state_dict()
        for n in (0, 40)
    )  # fmt: skip
    for name, weight in clean.items():
        assert_close(padded[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scope", ["uniform", "owl"])
def test_experts_get_the_tokens_and_not_the_padding(scope: str) -> None:
    clean, padded = (
        sec.sparsify(qwen(), "wanda", amount=0.5, data=texts(n, True), progress=False, scope=scope)
        for n in (0, 40)
    )
    assert [(r.layer, r.tokens) for r in clean.report.rows] == [
        (r.layer, r.tokens) for r in padded.report.rows
    ]
    assert any("experts" in r.layer for r in clean.report.rows)
    assert clean.masks == padded.masks
    assert padded.report.notes == clean.report.notes


def test_expert_counts_hold_no_padding() -> None:
    scores, counts = zip(
        *(saliency(depth_of(qwen(), texts(n, True))) for n in (0, 40)), strict=True
    )
    for name in counts[0]:
        assert counts[0][name].tolist() == counts[1][name].tolist()
        assert int(counts[0][name].sum()) == 2 * int(texts(0, True)[0]["attention_mask"].sum())
        assert_close(scores[0][name], scores[1][name], rtol=1e-4, atol=1e-6)


class Lists(nn.Module):
    """Experts in a list, of which each is given its tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            out[chosen == k] = expert(flat[chosen == k])
        return x + out.view_as(x)


class Mixed(nn.Module):
    """Two blocks of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Lists() for _ in range(2))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_what_cannot_be_told_from_padding_is_said() -> None:
    torch.manual_seed(0)
    mask = torch.ones(4, 12, dtype=torch.long)
    data = [{"x": torch.randn(4, 12, 8), "attention_mask": mask}]
    notes = sec.sparsify(Mixed(), "wanda", amount=0.5, data=data, progress=False).report.notes
    assert not any("padding" in note for note in notes)
    mask[0, 5:] = 0
    notes = sec.sparsify(Mixed(), "wanda", amount=0.5, data=data, progress=False).report.notes
    assert any("experts" in note and "padding among them was counted" in note for note in notes)


def two_sides(decoder: int, masked: bool = True, noise: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 64, (2, 16), generator=generator)
    answer = torch.randint(2, 64, (2, decoder), generator=generator)
    own, other = torch.ones_like(ids), torch.ones_like(answer)
    own[1, 4:] = 0
    other[0, 3:] = 0
    ids = (ids + noise) % 62 * (1 - own) + ids * own
    answer = (answer + noise) % 62 * (1 - other) + answer * other
    both = {"input_ids": ids, "attention_mask": own, "decoder_input_ids": answer}
    return {**both, "decoder_attention_mask": other} if masked else both


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("decoder", [16, 10])
def test_each_side_has_its_own_padding(decoder: int, masked: bool) -> None:
    batch = two_sides(decoder, masked)
    own = int(batch["attention_mask"].sum())
    other = int(batch["decoder_attention_mask"].sum()) if masked else 2 * decoder
    for step in walk(t5(), [batch]):
        gathered = step.gather()
        for group in gathered.groups():
            for layer in group:
                cross = "EncDecAttention.k" in layer.name or "EncDecAttention.v" in layer.name
                wanted = own if cross or layer.name.startswith("encoder") else other
                assert gathered.stats(layer).tokens == wanted, layer.name
        assert not gathered.unsure


@pytest.mark.parametrize("tune", [0, 2])
def test_what_is_under_padding_changes_nothing(tune: int) -> None:
    one, other = (
        sec.sparsify(t5(), "wanda", amount=0.5, data=[two_sides(16, noise=n)], progress=False,
                     tune=tune)
        for n in (0, 7)
    )  # fmt: skip
    assert one.masks == other.masks
    for (name, p), q in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert_close(p, q, rtol=1e-3, atol=1e-4, msg=name)


def test_rows_are_told_by_place_and_side() -> None:
    mask = torch.tensor([[1, 0], [1, 1]])
    tokens = Tokens(copy.deepcopy(llama()), {"input_ids": mask, "attention_mask": mask})
    flat = [True, False, True, True]
    assert tokens.rows(torch.ones(2, 2, 3)).tolist() == flat
    assert tokens.rows(torch.ones(4, 3)).tolist() == flat
    assert tokens.rows(torch.ones(2, 2, 2, 3)).tolist() == [f for f in flat for _ in range(2)]
    assert tokens.rows(torch.ones(3, 3), "odd") is None and tokens.unsure == {"odd"}
    bare = Tokens(llama(), {"input_ids": mask, "attention_mask": torch.ones_like(mask)})
    assert bare.rows(torch.ones(4, 3)) is None
