"""FLAP, Wanda-sp and the recovery that they are known for, against formulas written out."""

import copy
from typing import Any

import pytest
import torch
from tiny import batches, gpt2, llama, logits, parameters, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.engine.statistics import Stats, collect
from secateur.granularity.units import score

QUIET: dict[str, Any] = {"progress": False, "measure": False}


def inputs_of(model: nn.Module, layer: str, data: Any = None) -> Tensor:
    """What a layer sees on all batches, (tokens, inputs)."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().reshape(-1, args[0].shape[-1]))
    )
    for batch in data or batches():
        logits(model, batch["input_ids"])
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("criterion", ["fluctuation", "wanda"])
def test_units_have_the_mean_score_of_the_inputs_they_are(criterion: str) -> None:
    model = llama(2)
    graph = sec.trace(model, {"input_ids": tokens()})
    found = sec.criteria.find(criterion)
    stats = collect(graph, found.needs, batches())
    scores = score(graph, graph.free.values(), found, stats)
    for layer, name, positions in (
        ("model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj", [[k] for k in range(40)]),
        (
            "model.layers.0.self_attn.o_proj",
            "model.layers.0.self_attn.q_proj:head",
            [list(range(8 * k, 8 * k + 8)) for k in range(4)],  # two queries of four dimensions
        ),
    ):
        x, weight = inputs_of(model, layer).double(), model.get_submodule(layer).weight.double()
        naive = []
        for j in range(weight.shape[1]):
            mean = x[:, j].mean()
            if criterion == "fluctuation":
                naive.append(((x[:, j] - mean) ** 2).mean() * (weight[:, j] ** 2).sum())
            else:
                naive.append(weight[:, j].abs().mean() * (x[:, j] ** 2).mean().sqrt())
        each = torch.stack(naive).detach()
        if criterion == "fluctuation":
            each = (each - each.mean()) / each.std(correction=0)
        expected = torch.stack([each[at].mean() for at in positions])
        assert_close(scores[name].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_score_is_the_error_that_the_mean_leaves() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(200, 6) * torch.arange(1, 7) + 3, nn.Linear(6, 4)
    stats = Stats(input_variance=x.var(0, correction=0))
    scores = sec.criteria.find(("fluctuation", {"standardize": False}))(layer.weight, stats)
    for j in range(6):
        replaced = x.clone()
        replaced[:, j] = x[:, j].mean()
        error = (layer(x) - layer(replaced)).square().sum(1).mean()
        assert_close(scores[j], error, rtol=1e-4, atol=1e-5)


def test_variance_needs_no_squares_of_large_numbers() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    xs = [1e4 + torch.randn(n, 3) for n in (5, 50, 500)]
    stats = collect(layer, {"input_variance"}, [(x, torch.zeros(len(x))) for x in xs])
    expected = torch.cat(xs).double().var(0, correction=0).float()
    assert_close(stats.tensors["weight"].input_variance, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_first_layers_mean_output_stays_what_it_was(build: Any) -> None:
    """Whose input the removal of other units has not changed yet."""
    model, data = build(2), batches()
    result = sec.prune(model, {"input_ids": tokens()}, method="flap", amount=0.4, data=data,
                       kinds=["head"], **QUIET)  # fmt: skip
    layer = {llama: "model.layers.0.self_attn.o_proj", gpt2: "transformer.h.0.attn.c_proj"}[build]
    with torch.no_grad():
        means = [m.get_submodule(layer)(inputs_of(m, layer)).mean(0) for m in (model, result.model)]
    bare = result.plan.apply(model)
    with torch.no_grad():
        without = bare.get_submodule(layer)(inputs_of(bare, layer)).mean(0)
    assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)
    assert (without - means[0]).abs().max() > 1e-2


def test_compensation_leaves_no_more_error_than_the_variance() -> None:
    """Of one layer, on the data that it was measured on: mean squares lose the squared mean."""
    model, data, layer = llama(1), batches(6), "model.layers.0.mlp.down_proj"
    how: dict[str, Any] = {"kinds": ["channel"], "data": data, "amount": 0.4, **QUIET}
    bare, mended = (
        sec.prune(model, {"input_ids": tokens()}, method=("flap", {"compensate": c}), **how)
        for c in (False, True)
    )
    with torch.no_grad():
        said = [
            m.get_submodule(layer)(inputs_of(m, layer, data))
            for m in (model, bare.model, mended.model)
        ]
    errors = [(s - said[0]).square().mean() for s in said[1:]]
    mean = (said[1] - said[0]).mean(0).square().mean()
    assert_close(errors[0] - errors[1], mean, rtol=1e-3, atol=1e-6)


def test_a_made_bias_is_saved_and_loaded(tmp_path: Any) -> None:
    model = llama(2)
    result = sec.prune(model, {"input_ids": tokens()}, method="flap", amount=0.3, data=batches(),
                       **QUIET)  # fmt: skip
    made = result.history[0]["recovery"][0]["made"]
    assert made and all(name.endswith(("o_proj", "down_proj")) for name in made)
    assert all(model.get_submodule(name).bias is None for name in made)
    loaded = sec.load(llama(2), result.save(tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(result.model))


def test_a_budget_of_parameters_counts_heads_by_what_they_cost() -> None:
    model = llama(3)
    result = sec.prune(model, {"input_ids": tokens()}, method="flap", keep={"params": 0.8},
                       data=batches(), **QUIET)  # fmt: skip
    weights = [n for n, _ in model.named_parameters()]
    now = sum(p.numel() for n, p in result.model.named_parameters() if n in weights)
    assert now / parameters(model) == pytest.approx(0.8, abs=0.02)


def test_a_convolution_is_compensated_inside_its_border() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 3, bias=False))
    x = torch.rand(16, 1, 7, 7)
    with torch.no_grad():
        net[0].weight[:3] = 0  # channels that are constant: nothing is lost
        net[0].bias[:3] = torch.tensor([0.5, 1.0, 2.0])
    before = copy.deepcopy(net)
    result = sec.prune(net, x, method="flap", amount=0.5, data=[(x,)], **QUIET)
    assert result.model[0].out_channels == 3
    assert_close(result.model(x), before(x), rtol=1e-4, atol=1e-5)
