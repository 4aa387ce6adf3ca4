"""Permutations for N:M: nearly as good as all orders tried out, and the model stays the same."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sec
from secateur.errors import ConfigError, PlanError
from secateur.granularity.registry import units
from secateur.plan.permutation import best_order, kept
from secateur.plan.verify import distance, outputs_of
from secateur.zoo.networks import resnet8


def kept_in_loops(scores, order, n, m) -> float:
    total = 0.0
    for row in scores[:, order].tolist():
        for start in range(0, len(row), m):
            total += sum(sorted(row[start : start + m])[n:])
    return total


def best_swaps(scores, n, m) -> float:
    """Pool and Yu's greedy search: the best swap of two units between groups, until none helps."""
    order = list(range(scores.shape[1]))
    best = kept_in_loops(scores, order, n, m)
    while True:
        tried = {}
        for i, j in itertools.combinations(range(len(order)), 2):
            if i // m != j // m:
                other = order.copy()
                other[i], other[j] = other[j], other[i]
                tried[i, j] = kept_in_loops(scores, other, n, m)
        (i, j), value = max(tried.items(), key=lambda item: item[1])
        if value <= best + 1e-6:
            return best
        order[i], order[j] = order[j], order[i]
        best = value


@pytest.mark.parametrize("seed", range(5))
def test_of_eight_units_an_order_near_the_best_of_all_is_found(seed) -> None:
    torch.manual_seed(seed)
    scores = torch.rand(6, 8) ** 4
    everything = {
        kept_in_loops(scores, [*first, *(u for u in range(8) if u not in first)], 2, 4)
        for first in itertools.combinations(range(8), 4)
    }
    order = best_order(scores, 2, 4)
    assert sorted(order.tolist()) == list(range(8))
    found = kept(scores[:, order], 2, 4)
    assert 0.995 * max(everything) <= found <= max(everything) * (1 + 1e-6)
    assert sum(value > found * (1 + 1e-6) for value in everything) < 4  # of 35


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_assignments_keep_at_least_what_greedy_swaps_keep(n, m) -> None:
    torch.manual_seed(3)
    scores = torch.rand(5, 16) ** 3
    order = best_order(scores, n, m)
    found = kept_in_loops(scores, order.tolist(), n, m)
    assert found == pytest.approx(kept(scores[:, order], n, m), rel=1e-5)
    assert found >= 0.995 * best_swaps(scores, n, m)
    assert found > kept(scores, n, m)


def llama() -> tuple[nn.Module, dict]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 50, (2, 6))}


def residual() -> tuple[nn.Module, torch.Tensor]:
    net = resnet8.build().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    return net, torch.randn(2, 1, 28, 28)


@pytest.mark.parametrize("build", [llama, residual])
def test_a_permuted_model_computes_the_same_and_keeps_more(build) -> None:
    torch.manual_seed(0)
    net, x = build()
    before = copy.deepcopy(net.state_dict())
    found = sec.permute(sec.trace(net, x), "2:4")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    moved = [k for k, v in found.model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(moved) >= len(before) // 2
    assert distance(outputs_of(net, x, 0), outputs_of(found.model, x, 0)) < 1e-5
    # What it reports is what the engine's own N:M masks keep.
    fit = {n for n, w in before.items() if w.dim() > 1 and w.shape[1] % 4 == 0}
    counted = fit - {"model.embed_tokens.weight"}
    shares = []
    for model in (net, found.model):
        weights = {n: p.detach().abs() for n, p in model.named_parameters() if n in counted}
        cut = units("2:4", weights)
        masks = cut.spread(cut.constrained(cut.reduce(weights)))
        total = sum(float(w.sum()) for w in weights.values())
        shares.append(sum(float(weights[n][masks[n]].sum()) for n in masks) / total)
    assert shares == pytest.approx([found.before, found.after], rel=1e-4)
    assert found.after > found.before + 0.005
    assert f"{found.after:.2%}" in repr(found)


def test_ria_can_order_what_it_prunes_then() -> None:
    torch.manual_seed(0)
    net, x = llama()
    data = [{"input_ids": torch.randint(0, 50, (4, 12))}]
    found = sec.permute(sec.trace(net, x), "2:4", criterion="ria", data=data)
    assert found.after > found.before
    sparse = sec.sparsify(found.model, "ria", pattern="2:4", data=data, progress=False)
    assert sparse.report.sparsity == 0.5
    sec.permute(sec.trace(net, x), "2:4", criterion="ria", data=data, inplace=True)
    for name, value in net.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(F.dropout(self.one(x), 0.5, training=True))


def test_what_cannot_be_permuted_is_said_and_left_alone() -> None:
    torch.manual_seed(0)
    net, x = Noisy(), torch.randn(2, 3)
    before = copy.deepcopy(net.state_dict())
    graph = sec.trace(net, x)
    with pytest.raises(PlanError, match="computes something else"):
        sec.permute(graph, inplace=True)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(ConfigError, match="read in groups of 3"):
        sec.permute(graph, "1:3")
    with pytest.raises(ConfigError, match="read in groups of 4"):
        sec.permute(graph, ignore=["two"])
    with pytest.raises(ConfigError, match="pattern"):
        sec.permute(graph, "4:2")
