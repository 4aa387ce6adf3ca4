"""Surgery in place: parameters keep their identity, and a failure changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import PlanError, SurgeryError
from secateur.graph import trace
from secateur.plan import Edit, Plan
from secateur.plan.surgery import apply_to_optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.again = self.b
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.bn(self.a(x)).relu()).relu()
        return self.head(self.again(y).mean((2, 3)))


def some(net: nn.Module) -> Plan:
    graph = trace(net, torch.randn(2, 3, 6, 6))
    return Plan.of(graph, {n: torch.arange(5) for n in graph.free}).prepared()


def test_in_place_the_parameters_stay_themselves() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    net.head.weight.requires_grad_(False)
    plan = some(net)
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    before, grads = dict(net.named_parameters()), {n: p.grad for n, p in net.named_parameters()}
    expected = copy.deepcopy(net)
    small = plan.apply(net, inplace=True)
    assert small is net
    assert net.again is net.b
    for name, p in net.named_parameters():
        assert p is before[name]
        assert tuple(p.shape) == plan.shape(name)
        kept = dict(expected.named_parameters())[name].detach()
        for axis, mask in enumerate(plan.masks(name)):
            kept = kept.index_select(axis, mask.nonzero().flatten())
        assert torch.equal(p.detach(), kept)
        if grads[name] is not None:
            assert p.grad is not None
            assert p.grad.shape == p.shape
    assert not net.head.weight.requires_grad
    assert net.bn.running_mean.shape == (5,)
    assert (net.a.out_channels, net.b.in_channels, net.bn.num_features) == (5, 5, 5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_goes_on_with_the_kept_part_of_its_state(kind: type) -> None:
    torch.manual_seed(0)
    net = Net()
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}
    optimizer = kind(net.parameters(), **options)
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    slot = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    old = {n: optimizer.state[p][slot].clone() for n, p in net.named_parameters()}
    plan = some(net)
    plan.apply(net, inplace=True)
    apply_to_optimizer(plan, net, optimizer)
    for name, p in net.named_parameters():
        kept = old[name]
        for axis, mask in enumerate(plan.masks(name)):
            kept = kept.index_select(axis, mask.nonzero().flatten())
        assert torch.equal(optimizer.state[p][slot], kept)
    optimizer.zero_grad()
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()


def test_a_plan_for_another_architecture_names_the_difference_and_changes_nothing() -> None:
    plan = some(Net())
    other = Net()
    other.extra = nn.Linear(2, 2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(PlanError, match=r"also has extra\.weight"):
        plan.apply(other, inplace=True)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


def test_an_edit_that_cannot_be_made_changes_nothing() -> None:
    net = Net()
    plan = some(net)
    impossible = replace(plan, edits=(*(plan.edits or ()), Edit("bn", "no_such_attribute", 3)))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(SurgeryError, match="no_such_attribute"):
        impossible.apply(net, inplace=True)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.a.out_channels == 8
