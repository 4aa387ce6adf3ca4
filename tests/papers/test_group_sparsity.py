"""DepGraph's group regulariser against its formula written out unit by unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.engine.seams import Moment
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.methods.during.group_sparsity import GroupSparsity
from secateur.training.attach import attach


def moment_of(net: nn.Module) -> Moment:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    parameters = dict(net.named_parameters())
    return Moment(0, 0, 0.0, 0.0, torch.Generator(), optimizer, net, parameters=parameters)


class Coupled(nn.Module):
    """A residual with batch norm, so that a unit lies in five weights, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 6, 1), nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.a(x)).relu()
        return self.head(self.c(torch.cat([y, y + self.b(y)], 1)).mean((2, 3)))


@pytest.fixture
def net() -> Coupled:
    torch.manual_seed(0)
    net = Coupled()
    with torch.no_grad():
        net.bn.weight.uniform_(0.5, 1.5)
    return net


def by_hand(net: Coupled, alpha: float) -> Tensor:
    """Half of gamma times the squared norm of each unit of the residual class, as a number."""
    total = torch.zeros(())
    squares = []
    for k in range(6):
        parts = [net.a.weight[k], net.bn.weight[k], net.b.weight[k], net.b.weight[:, k]]
        parts += [net.c.weight[:, k], net.c.weight[:, 6 + k]]
        squares.append(sum((p.square().sum() for p in parts), torch.zeros(())))
    importance = torch.stack(squares)
    most, least = importance.detach().max(), importance.detach().min()
    for k in range(6):
        gamma = 2 ** (alpha * (most - importance[k].detach()) / (most - least))
        total = total + 0.5 * gamma * importance[k]
    rows = [net.c.weight[k].square().sum() + net.head.weight[:, k].square().sum() for k in range(4)]
    other = torch.stack(rows)
    most, least = other.detach().max(), other.detach().min()
    for k in range(4):
        total = total + 0.5 * 2 ** (alpha * (most - other[k].detach()) / (most - least)) * other[k]
    return total


def test_the_gradient_is_that_of_the_written_out_penalty(net: Coupled) -> None:
    penalty = GroupSparsity(trace(net, torch.randn(2, 3, 5, 5)), strength=0.1, alpha=3.0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    penalty.gradients(moment_of(net))
    weights = [net.a.weight, net.bn.weight, net.b.weight, net.c.weight, net.head.weight]
    expected = torch.autograd.grad(0.1 * by_hand(net, 3.0), weights)
    for w, g in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.grad, g)
    assert net.a.bias.grad is not None
    assert not net.a.bias.grad.any()


def test_gamma_runs_from_one_to_two_to_the_alpha(net: Coupled) -> None:
    penalty = GroupSparsity(trace(net, torch.randn(2, 3, 5, 5)), strength=1.0, alpha=4.0)
    parameters = dict(net.named_parameters())
    gamma, importance = penalty.weights(parameters), penalty.importances(parameters)
    for name, g in gamma.items():
        assert g[importance[name].argmax()].item() == pytest.approx(1.0)
        assert g[importance[name].argmin()].item() == pytest.approx(16.0, rel=1e-5)


def test_units_that_are_alike_get_one_not_nan() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for p in net.parameters():
        nn.init.constant_(p, 0.5)
    penalty = GroupSparsity(trace(net, torch.randn(2, 3)), strength=1.0)
    assert penalty.weights(dict(net.named_parameters()))["0"].tolist() == [1.0] * 4


def test_lasso_pulls_every_unit_equally_hard_up_to_gamma(net: Coupled) -> None:
    penalty = GroupSparsity(
        trace(net, torch.randn(2, 3, 5, 5)), strength=1.0, alpha=0.0, variant="lasso"
    )
    parameters = dict(net.named_parameters())
    pull, importance = penalty.weights(parameters), penalty.importances(parameters)
    for name in pull:
        torch.testing.assert_close(
            pull[name] * importance[name].sqrt(), torch.ones_like(pull[name])
        )


def test_training_separates_the_units_and_leaves_the_loop_alone() -> None:
    def train(strength: float) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
        graph = trace(net, torch.randn(2, 5))
        x = torch.randn(64, 5)
        y = x[:, :1] * 2
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        handle = attach(net, optimizer, penalty := GroupSparsity(graph, strength=strength))
        for _ in range(300):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        assert handle.steps == 300
        handle.detach()
        norms = penalty.importances(dict(net.named_parameters()))["0"].sqrt()
        return (norms / norms.max()).sort().values

    plain, pushed = train(0.0), train(2e-3)
    assert pushed[:8].mean() < 0.5 * plain[:8].mean()


def test_growing_regularisation_grows_most_for_the_least_important(net: Coupled) -> None:
    penalty = GroupSparsity(trace(net, torch.randn(2, 3, 5, 5)), strength=0.01, growth=0.1, every=2)
    parameters = dict(net.named_parameters())
    importance = penalty.importances(parameters)
    moment = moment_of(net)
    for step in range(4):
        moment.step = step
        penalty.gradients(moment)
    grown = penalty.weights(parameters)
    for name, g in grown.items():
        lack = (importance[name].max() - importance[name]) / (
            importance[name].max() - importance[name].min()
        )
        torch.testing.assert_close(g, 0.01 + 2 * 0.1 * lack)
    again = GroupSparsity(penalty.graph, strength=0.01, growth=0.1, every=2)
    resumed = moment_of(net)  # what is stored is the moment's state, not the penalty
    resumed.step = 4
    resumed.state = {n: t.clone() for n, t in moment.state.items()}
    again.gradients(resumed)
    for name, g in again.weights(parameters).items():
        assert torch.equal(g, grown[name])


@pytest.mark.parametrize("wrong", [{"strength": float("nan")}, {"growth": -1.0}, {"every": 0}])
def test_a_strength_that_is_none_is_refused(net: Coupled, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        GroupSparsity(trace(net, torch.randn(2, 3, 5, 5)), **wrong)


def test_a_second_attachment_and_a_foreign_optimizer_are_refused(net: Coupled) -> None:
    penalty = GroupSparsity(trace(net, torch.randn(2, 3, 5, 5)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(net, optimizer, penalty)
    with pytest.raises(ConfigError, match="attachment already"):
        attach(net, optimizer, penalty)
    handle.detach()
    attach(net, optimizer, penalty).detach()
    other = torch.optim.SGD(Coupled().parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="none of the model's parameters"):
        attach(net, other, penalty)
