"""What a comparison cannot show it must not call proven."""

import torch
from torch import nn

import secateur as sec
from secateur.plan.verify import distance


def plan_of(net):
    graph = sec.trace(net, torch.randn(3, 6))
    return sec.plan(graph, amount=0.5, criterion="random", seed=1)


class Choice(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        return self.net(x).argmax(1)


def test_integers_alone_prove_nothing():
    net = Choice()
    proof = plan_of(net).verify(net)
    assert not proof.proven and not proof.ok and "floating" in proof.note


def test_an_effect_below_the_tolerance_is_noted():
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    with torch.no_grad():
        net[1].weight.mul_(1e-7)
    proof = plan_of(net).verify(net)
    assert 0 < proof.change < proof.tolerance and "shows little" in proof.note


def test_imaginary_parts_count():
    a = torch.tensor([1 + 0j, 1 + 0j])
    assert distance([a], [a + 1j]) > 0.5


def test_one_tensor_given_as_three_inputs_stays_one() -> None:
    """An attention whose query is its key and value takes a path of its own, with other classes."""
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(2, 5, 32)
    result = sec.prune(attention, (x, x, x), amount=0.5, measure=False, progress=False)
    assert result.verification.proven and result.verification.ok


def test_an_empty_batch_proves_nothing():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    result = sec.prune(net, torch.randn(0, 6), amount=0.5, measure=False, progress=False)
    assert not result.verification.proven and "empty" in result.verification.note
