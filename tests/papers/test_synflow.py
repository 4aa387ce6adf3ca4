"""SynFlow: closed form, conservation, and a layer that one round empties and a hundred do not."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.criteria.synflow import synflow
from secateur.errors import DataError

X = [torch.randn(4, 6)]


def mlp(*widths: int, bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def scored(net: nn.Module, data: list) -> dict[str, Tensor]:
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    return synflow(net, weights, data=data)


def test_scores_of_an_mlp_are_the_closed_form() -> None:
    torch.manual_seed(0)
    net = mlp(6, 5, 4, 3)
    w = [layer.weight.detach().double().abs() for layer in net[::2]]
    found = list(scored(net, X).values())
    flow = float((w[2] @ w[1] @ w[0]).sum()) * len(X[0])
    for layer in range(3):
        for i in range(w[layer].shape[0]):
            for j in range(w[layer].shape[1]):
                after = torch.eye(w[layer].shape[0]).double()[i]
                for m in w[layer + 1 :]:
                    after = m @ after
                before = torch.ones(6).double()
                for m in w[:layer]:
                    before = m @ before
                one = after.sum() * w[layer][i, j] * before[j]
                assert_close(found[layer][i, j], one * len(X[0]) / flow)


def test_what_flows_into_a_unit_flows_out_of_it_and_each_layer_carries_all() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3, bias=False),
    )
    first, second, third = scored(net, [torch.randn(2, 2, 8, 8)]).values()
    for layer in (first, second, third):
        assert float(layer.sum()) == pytest.approx(1)
    assert_close(first.sum((1, 2, 3)), second.sum((0, 2, 3)))
    assert_close(second.sum((1, 2, 3)), third.sum(0))


def test_neither_data_nor_signs_count_and_the_model_stays_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    net(X[0])  # statistics of the norm that are not 0 and 1
    net.eval()[1].train()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    scores = scored(net, X)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(torch.randint(0, 2, p.shape) * 2 - 1)
    assert_close(scored(other, [torch.full((4, 6), -7.0)]), scores)


def kept(rounds: int, keep: int) -> list[int]:
    net = mlp(784, 300, 100, 10)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in net[::2]:
            fan_in = layer.in_features
            layer.weight.copy_(torch.randn(layer.weight.shape).abs() * math.sqrt(2 / fan_in))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net,
        optimizer,
        ("synflow", {"rounds": rounds}),
        amount=1 - keep / 266_200,
        data=[torch.ones(1, 784)],
        allow_empty=True,
    )
    return [int(m.sum()) for m in handle.masks.values()]


def test_one_round_empties_layers_and_many_rounds_do_not() -> None:
    assert kept(1, 300) == [0, 0, 300]
    many = kept(10, 300)
    assert sum(many) == 300 and min(many) > 50


def convolutional() -> nn.Sequential:
    """With biases and a norm whose shift and mean are not zero, as in trained networks."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )
    nn.init.normal_(net[1].bias)
    nn.init.normal_(net[1].running_mean)
    return net


def test_conservation_holds_in_every_round_with_biases_and_norms_too() -> None:
    net = convolutional()
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    total = sum(p.numel() for p in weights.values())
    for keep in torch.logspace(math.log10(total), math.log10(4), 60).round().int().tolist():
        scores = synflow(net, weights, data=[torch.zeros(1, 1, 8, 8)])
        sums = [float(s.sum()) for s in scores.values()]
        assert sums == pytest.approx([1.0] * 4, rel=1e-6)
        lowest = torch.cat([s.flatten() for s in scores.values()]).topk(keep).values[-1]
        with torch.no_grad():
            for n, p in weights.items():
                p.mul_(scores[n] >= lowest)
    assert all(bool(p.any()) for p in weights.values())


@pytest.mark.parametrize("more", [0, 1, 3])
def test_no_layer_is_emptied_down_to_one_weight_a_layer(more: int) -> None:
    net = convolutional()
    total = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    handle = sec.attach(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        "synflow",
        amount=1 - (4 + more) / total,
        data=[torch.zeros(1, 1, 8, 8)],
        allow_empty=True,
    )
    counts = [int(m.sum()) for m in handle.masks.values()]
    assert sum(counts) == 4 + more and min(counts) >= 1


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="shape of the inputs"):
        scored(mlp(6, 3), None)
    with pytest.raises(DataError, match="softmax"):
        scored(nn.Sequential(mlp(6, 3), nn.Softmax(1)), X)
    zero = mlp(6, 3)
    nn.init.zeros_(zero[0].weight)
    with pytest.raises(DataError, match="all zero"):
        scored(zero, X)


def test_its_scores_choose_units_too() -> None:
    model = mlp(6, 5, 3)
    scores = scored(model, X)
    plan = sec.plan(sec.trace(model, X[0]), amount=0.4, criterion="synflow", data=X)
    first, second = (scores[n] for n in ("0.weight", "2.weight"))
    order = (first.sum(1) + second.sum(0)).argsort(descending=True)
    assert plan.keep["0"].nonzero().flatten().tolist() == sorted(order[:3].tolist())


def test_a_name_with_bias_in_it_is_not_a_bias() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unbiased = nn.Parameter(torch.rand(3, 4) + 0.1)
            self.out = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x @ self.unbiased.T)

    net, x = Own(), torch.ones(1, 4)
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    found = synflow(net, weights, data=[x])
    assert float(found["unbiased"].sum()) == pytest.approx(1)
