"""LLM-Pruner, Minitron and Fisher masks: scores of coupled structures, written out."""

import copy
from typing import Any

import pytest
import torch
from tiny import batches, llama, tokens
from torch import nn
from torch.testing import assert_close

import secateur as sec
from secateur.engine.statistics import collect
from secateur.granularity.units import score

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}
MLP, HEADS = "model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.q_proj:head"


def scores(model: nn.Module, criterion: str, data: Any) -> dict[str, torch.Tensor]:
    graph = sec.trace(model, INPUTS)
    found = sec.criteria.find(criterion)
    return score(graph, graph.free.values(), found, collect(graph, found.needs, data))


def gradients(model: nn.Module, data: Any) -> dict[str, torch.Tensor]:
    other = copy.deepcopy(model)
    for batch in data:
        (other(**batch).loss / len(data)).backward()
    return {n: p.grad for n, p in other.named_parameters()}


@pytest.mark.parametrize(("order", "vector"), [("first", False), ("first", True)])
def test_llm_pruner_sums_over_coupled_matrices(order: str, vector: bool) -> None:
    model, data = llama(2), batches(2)
    weights, grads = dict(model.named_parameters()), gradients(model, data)
    method = sec.methods  # the registry is what the name comes from
    assert "llm_pruner" in method("after")
    found = scores(model, "taylor_vector" if vector else "saliency", data)

    def lines(name: str, at: Any, axis: int) -> float:
        product = (weights[name].detach() * grads[name]).movedim(axis, 0)[at]
        return float((product.sum(1).abs() if vector else product.abs()).sum())

    layer = "model.layers.1.mlp."
    naive = [
        lines(f"{layer}gate_proj.weight", slice(k, k + 1), 0)
        + lines(f"{layer}up_proj.weight", slice(k, k + 1), 0)
        + lines(f"{layer}down_proj.weight", slice(k, k + 1), 1)
        for k in range(40)
    ]
    assert_close(found[MLP], torch.tensor(naive), rtol=1e-3, atol=1e-6)
    layer = "model.layers.0.self_attn."
    naive = [
        lines(f"{layer}q_proj.weight", slice(8 * k, 8 * k + 8), 0)
        + lines(f"{layer}k_proj.weight", slice(4 * k, 4 * k + 4), 0)
        + lines(f"{layer}v_proj.weight", slice(4 * k, 4 * k + 4), 0)
        + lines(f"{layer}o_proj.weight", slice(8 * k, 8 * k + 8), 1)
        for k in range(4)
    ]
    assert_close(found[HEADS], torch.tensor(naive), rtol=1e-3, atol=1e-6)


def test_the_first_order_of_a_vector_is_the_derivative_of_the_loss() -> None:
    """On a loss that is linear in the weights it is the change when the unit is zeroed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))
    x = torch.randn(6, 3)

    def linear(output: torch.Tensor, _: Any) -> torch.Tensor:
        return output.sum()

    graph = sec.trace(net, x)
    stats = collect(graph, {"grad"}, [(x, torch.zeros(6))], loss=linear)
    found = score(graph, graph.free.values(), sec.criteria.find("taylor_vector"), stats)["0"]
    for k in range(5):
        without = copy.deepcopy(net)
        with torch.no_grad():
            without[0].weight[k] = 0
            change = (net(x).sum() - without(x).sum()).abs()
        assert_close(found[k], 2 * change, rtol=1e-4, atol=1e-5)  # once a row, once a column


def test_minitron_is_the_squared_mean_level_over_samples() -> None:
    model, data = llama(2), batches(3)
    found = scores(model, "activation_level", data)
    levels = []
    for layer in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"):
        seen: list[torch.Tensor] = []
        hook = model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, to=seen: to.append(args[0].detach())
        )
        for batch in data:
            with torch.no_grad():
                model(input_ids=batch["input_ids"])
        hook.remove()
        levels.append(torch.cat(seen).abs().mean(1).square().mean(0))
    assert_close(found[MLP], levels[0], rtol=1e-4, atol=1e-6)
    assert_close(found[HEADS], levels[1].view(4, 8).mean(1), rtol=1e-4, atol=1e-6)


def gate_gradients(model: nn.Module, data: Any, hidden: int = 40) -> torch.Tensor:
    """Of the loss of each batch by a factor on each neuron of the second block."""
    found = []
    for batch in data:
        mask = torch.ones(hidden, requires_grad=True)
        hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, m=mask: (args[0] * m,)
        )
        found.append(torch.autograd.grad(model(**batch).loss, mask)[0])
        hook.remove()
    return torch.stack(found)


def test_mask_tuning_takes_least_information_for_each_weight_and_then_the_best_together() -> None:
    model, data = llama(2), batches(3)
    plan = sec.prune(model, INPUTS, method=("mask_tuning", {"tune": False}),
                     keep={"params": 0.8}, data=data, **QUIET).plan  # fmt: skip
    assert plan.made_by["normalizer"] == "size"
    graph = sec.trace(model, INPUTS)
    found = sec.criteria.find("fisher_mask")
    stats = collect(graph, found.needs, data)
    raw = score(graph, graph.free.values(), found, stats, normalizer="none")
    weights = {name: 32 * (3 if name.endswith("gate_proj") else 8 + 4 + 4 + 8)
               for name in plan.removed}  # fmt: skip
    assert set(weights.values()) == {96, 768}
    each = {name: (raw[name] / weights[name]).sort().values for name in weights}
    lost = max(float(each[name][k - 1]) for name, k in plan.removed.items() if k)
    left = min(float(each[name][k]) for name, k in plan.removed.items() if k < len(each[name]) - 1)
    assert lost <= left  # whatever goes is worth less, for what it costs, than all that stays
    vectors = gate_gradients(model, data)
    assert_close(vectors.square().mean(0), raw[MLP], rtol=1e-3, atol=1e-9)
    gone = (~plan.keep[MLP]).nonzero().flatten().tolist()
    start = raw[MLP].argsort()[: len(gone)].tolist()
    best = rearranged_by_hand(vectors, start)
    assert sorted(best) == gone != sorted(start)
    lengths = [float(vectors[:, at].sum(1).square().sum()) for at in (best, start)]
    assert lengths[0] < lengths[1]


def rearranged_by_hand(vectors: torch.Tensor, gone: list[int]) -> list[int]:
    for unit in vectors.square().sum(0).argsort().tolist():
        if unit in gone:
            continue
        options = [[u for u in (*gone, unit) if u != back] for back in (*gone, unit)]
        gone = min(reversed(options), key=lambda o: float(vectors[:, o].sum(1).square().sum()))
    return gone


@pytest.mark.parametrize(
    "method",
    ["wanda_sp", "minitron", ("minitron", {"width": True}), "llm_pruner", "mask_tuning",
     ("llm_pruner", {"order": "mixed"}), ("llm_pruner", {"order": "second"}),
     ("llm_pruner", {"vector": True})],
)  # fmt: skip
def test_every_method_prunes_heads_and_neurons_and_is_proven(method: Any) -> None:
    model = llama(2)
    result = sec.prune(model, INPUTS, method=method, amount=0.4, data=batches(2), **QUIET)
    assert result.verification.ok
    kinds = {result.plan.graph.classes[name].kind for name in result.plan.removed}
    assert "channel" in kinds
    assert sum(p.numel() for p in result.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )
