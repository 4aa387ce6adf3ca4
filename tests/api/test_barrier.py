"""The barrier between two networks: closed forms, and what must be zero."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec
from secateur.errors import ConfigError, PlanError
from secateur.recovery import FineTune, Rewind


def net(seed: int = 0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(16) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 16), middle, nn.ReLU(), nn.Linear(16, 2))


def data() -> DataLoader:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8, shuffle=True)


def test_a_quadratic_has_the_barrier_of_its_formula() -> None:
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        first.weight.fill_(-1)
        second.weight.fill_(1)
    # Metric w^2: on the line (2a - 1)^2, lowest in the middle, 1 below its ends.
    found = sec.barrier(first, second, lambda m: m.weight.item() ** 2, points=5)
    assert found.points == ((0, 1), (0.25, 0.25), (0.5, 0), (0.75, 0.25), (1, 1))
    assert found.height == 1


def test_a_convex_loss_has_none_and_a_network_none_with_itself() -> None:
    x, y = torch.randn(20, 3), torch.randn(20)
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    loss = sec.barrier(first, second, lambda m: -(m(x)[:, 0] - y).square().mean().item())
    assert loss.height <= 1e-6
    same = sec.barrier(net(), net(), lambda m: m(torch.ones(1, 4)).sum().item())
    assert abs(same.height) < 1e-6


def test_a_permuted_copy_computes_the_same_and_lies_behind_a_barrier() -> None:
    trained = net()
    FineTune(epochs=20, lr=0.1, progress=False).heal(trained, data=data())
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    permuted = copy.deepcopy(trained)
    with torch.no_grad():
        permuted[0].weight.copy_(trained[0].weight[order])
        permuted[0].bias.copy_(trained[0].bias[order])
        permuted[3].weight.copy_(trained[3].weight[:, order])
    x = torch.randn(200, 4)
    torch.testing.assert_close(permuted(x), trained(x))

    def fit(m: nn.Module) -> float:
        return -float(nn.functional.cross_entropy(m(x), (x[:, 0] > 0).long()))

    assert sec.barrier(trained, permuted, fit).height > 0.05


def test_norms_are_recomputed_between_the_ends_only() -> None:
    first, second = net(0, True), net(1, True)
    for model in (first, second):
        FineTune(epochs=2, lr=0.05, progress=False).heal(model, data=data())
    seen = []
    sec.barrier(first, second, lambda m: seen.append(m[1].running_mean.clone()) or 0.0, points=3,
                data=data())  # fmt: skip
    assert torch.equal(seen[0], first[1].running_mean)
    assert torch.equal(seen[2], second[1].running_mean)
    middle = nn.Linear(4, 16)
    with torch.no_grad():
        middle.weight.copy_((first[0].weight + second[0].weight) / 2)
        middle.bias.copy_((first[0].bias + second[0].bias) / 2)
    expected = middle(data().dataset.tensors[0]).mean(0)
    torch.testing.assert_close(seen[1], expected, atol=1e-4, rtol=1e-3)


def test_two_orders_of_the_data_begin_alike_and_part() -> None:
    x = torch.randn(100, 4)

    def accuracy(m: nn.Module) -> float:
        return float((m(x).argmax(1) == (x[:, 0] > 0)).float().mean())

    model = net()
    before = copy.deepcopy(model.state_dict())
    how = FineTune(epochs=1, lr=0.1, progress=False)
    same = sec.instability(model, how, accuracy, data=data(), seeds=(1, 1))
    assert len({score for _, score in same.points}) == 1
    both = sec.instability(model, Rewind(base=how), accuracy, data=data())
    assert both.points[0][1] != both.points[5][1] or both.points[5][1] != both.points[-1][1]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_mistakes() -> None:
    with pytest.raises(PlanError, match="weight is not the same"):
        sec.barrier(nn.Linear(2, 2), nn.Linear(3, 2), lambda m: 0.0)
    with pytest.raises(ConfigError, match="at least 3"):
        sec.barrier(net(), net(), lambda m: 0.0, points=2)
    with pytest.raises(ConfigError, match="no seed="):
        sec.instability(net(), "none", lambda m: 0.0, data=data())
