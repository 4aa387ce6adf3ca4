"""LoRAPrune: its importance with explicit matrices, its schedule, and what is left at the end."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import secateur as sec
from secateur.errors import ConfigError

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))


def attached(steps: int, **options: Any) -> tuple[nn.Sequential, Any, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, "loraprune", steps=steps, example_inputs=X, rank=2, **options
    )
    return net, optimizer, handle


def step(net: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), torch.arange(32) % 3).backward()
    optimizer.step()


def test_importance_is_the_papers_with_explicit_matrices() -> None:
    net, optimizer, handle = attached(100, every=50, momentum=0.9, alpha=6.0)
    expected = torch.zeros(10)
    for _ in range(3):
        w1, b1, w2, b2 = (p.detach().clone() for p in net.parameters())
        factors = {}
        for n in ("0.weight", "2.weight"):
            of = handle.gated.aux[n]
            factors[n] = [of[k].detach().clone().requires_grad_() for k in ("a", "b")]
        (a1, p1), (a2, p2) = factors.values()
        hidden = (X @ (w1 + 3 * p1 @ a1).T + b1).relu()
        logits = hidden @ (w2 + 3 * p2 @ a2).T + b2
        nn.functional.cross_entropy(logits, torch.arange(32) % 3).backward()
        total = torch.zeros(10)
        for w, a, b, axis in ((w1, a1, p1, 1), (w2, a2, p2, 0)):
            change = b.grad @ a + b @ a.grad - b.grad @ a.grad
            along = (change * (w + 3 * b @ a)).abs().sum(axis).detach()
            total += along / along.square().sum().sqrt()
        expected = 0.9 * expected + 0.1 * total
        step(net, optimizer)
        torch.testing.assert_close(handle.moment.state["importance.0"], expected)


def test_the_lowest_go_along_the_schedule_and_never_come_back() -> None:
    net, optimizer, handle = attached(20, amount=0.6, every=5, start=0.0, end=0.75)
    gone: set[int] = set()
    for number in range(1, 21):
        before = {k: v.clone() for k, v in handle.moment.state.items()}
        step(net, optimizer)
        stays = handle.moment.state.get("stays.0")
        if number % 5 == 0:
            now = set((stays == 0).nonzero().flatten().tolist())
            share = 1 - (1 - min(number / 15, 1.0)) ** 3
            assert len(now) == round(10 * 0.6 * share) and gone <= now
            score = handle.moment.state["importance.0"]
            fresh, left = sorted(now - gone), sorted(set(range(10)) - now)
            assert not fresh or score[fresh].max() <= score[left].min()
            gone = now
        elif "stays.0" in before:
            assert torch.equal(before["stays.0"], stays)
    assert len(gone) == 6


def test_weights_stay_and_the_products_are_merged_into_what_is_left() -> None:
    net, optimizer, handle = attached(10, amount=0.5, every=2)
    start = [p.detach().clone() for p in net.parameters()]
    for _ in range(10):
        step(net, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(net[0].parameters(), start, strict=False))
    assert torch.equal(net[2].weight, start[2])
    seen = net(X).detach()
    of = {k: t.detach() for k, t in handle.gated.aux["2.weight"].items()}
    result = handle.finish(remove=True, example_inputs=X)
    assert result.verification.ok and result.model[0].out_features == 5
    torch.testing.assert_close(result.model(X), seen)
    torch.testing.assert_close(net[2].weight, start[2] + 8 * of["b"] @ of["a"])


def test_every_layer_of_a_language_model_loses_as_much() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).train()
    ids = torch.arange(48).view(2, 24) % 50
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = sec.attach(
        model, optimizer, "loraprune", steps=6, example_inputs={"input_ids": ids}, every=2
    )
    for _ in range(6):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    result = handle.finish(remove=True, example_inputs={"input_ids": ids})
    assert result.verification.ok
    for layer in result.model.model.layers:
        assert layer.self_attn.k_proj.out_features == 8 and layer.mlp.up_proj.out_features == 32


def test_options_out_of_range_are_named() -> None:
    for wrong in ({"every": 0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError, match="loraprune"):
            attached(10, **wrong)
