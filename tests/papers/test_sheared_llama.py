"""Sheared LLaMA: the Lagrangian written out, and shapes that come out as they were asked for."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import secateur as sec
from secateur.errors import ConfigError

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
INPUTS = {"input_ids": torch.arange(48).view(2, 24) % 50}


def attached(steps: int, **options: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = sec.attach(
        model, optimizer, "sheared_llama", steps=steps, example_inputs=INPUTS, **options
    )
    return model, optimizer, handle


def train(model: Any, optimizer: Any, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(0, 50, (4, 16), generator=generator)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def test_gates_descend_the_lagrangian_that_its_multipliers_climb() -> None:
    _, _, handle = attached(10, amount=0.5)
    gate, moment, aux = handle.gated.gate, handle.moment, handle.gated.aux
    moment.step = 1  # half of the way through the warm-up: a quarter shall be gone
    expected = {}
    for number, (space, a) in enumerate(aux.items()):
        with torch.no_grad():
            a["multipliers"].copy_(torch.tensor([0.3 + number, 2.0]))
        first, second = a["multipliers"].tolist()
        odds = 1 / (1 + (-(a["log_alpha"] - 2 / 3 * math.log(1 / 11))).exp())
        gap = odds.mean() - 0.75
        (down,) = torch.autograd.grad(first * gap + second * gap**2, a["log_alpha"])
        expected[space] = down, torch.stack([-gap, -(gap**2)]).detach()
    gate.loss(aux, moment).backward()
    assert len(aux) == 4
    for space, (down, up) in expected.items():
        torch.testing.assert_close(aux[space]["log_alpha"].grad, down)
        torch.testing.assert_close(aux[space]["multipliers"].grad, up)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"amount": 0.5}, (2, 32, 32)),
        ({"heads": 0.25, "neurons": 0.75}, (3, 16, 32)),
        ({"amount": 0.25, "width": 0.5}, (3, 48, 16)),
    ],
)
def test_the_shape_is_exactly_the_one_asked_for_and_removal_equals_the_gates(
    options: dict[str, float], shape: tuple[int, int, int]
) -> None:
    model, optimizer, handle = attached(8, **options)
    train(model, optimizer, 8)
    result = handle.finish(remove=True, example_inputs=INPUTS)
    assert result.verification.ok
    for layer in result.model.model.layers:
        assert layer.self_attn.k_proj.out_features == shape[0] * 8
        assert layer.mlp.up_proj.out_features == shape[1]
        assert layer.mlp.down_proj.out_features == shape[2]
    if "width" not in options:  # norms count how wide the stream is
        with torch.no_grad():
            masked, small = (m.eval()(**INPUTS).logits for m in (model, result.model))
        torch.testing.assert_close(small, masked, rtol=1e-4, atol=1e-5)


def test_the_expected_shape_goes_to_the_target() -> None:
    steps = 150
    model, optimizer, handle = attached(steps, amount=0.5, warmup=0.3)
    train(model, optimizer, steps)
    for a in handle.gated.aux.values():
        odds = (a["log_alpha"] - 2 / 3 * math.log(1 / 11)).sigmoid()
        assert odds.mean().item() == pytest.approx(0.5, abs=0.08)


def test_what_asks_for_nothing_or_too_much_is_named() -> None:
    for wrong, words in (({"amount": 0.0}, "nothing goes"), ({"heads": 1.0}, "must be in")):
        with pytest.raises(ConfigError, match=words):
            attached(8, **wrong)
