"""Dropout after pruning: the rate of the closed form, for masks and for removed units."""

from math import sqrt

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.engine.dropout import rescaled_dropout
from secateur.errors import DataError
from secateur.recovery import FineTune


class Net(nn.Module):
    """A dropout before any layer, one after each of two, and one module that serves twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.noise, self.shared = nn.Dropout(0.2), nn.Dropout(0.5)
        self.seen: list[float] = []
        self.shared.register_forward_hook(lambda module, *_: self.seen.append(module.p))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.first(self.noise(x))).relu()
        return self.shared(self.second(x))


def _masks(net: Net, first: int, second: int) -> sec.MaskSet:
    masks = {}
    for name, kept in (("first.weight", first), ("second.weight", second)):
        mask = torch.zeros(net.get_parameter(name).shape, dtype=torch.bool)
        mask.view(-1)[:kept] = True
        masks[name] = mask
    return sec.MaskSet(masks)


def test_rates_go_with_the_root_of_the_connections_that_are_left() -> None:
    """8 of 128 and 16 of 64 connections: a quarter and a half of the rate."""
    net = Net()
    with rescaled_dropout(net, _masks(net, 8, 16)):
        net(torch.ones(2, 8))
        assert net.seen == [0.5 * sqrt(8 / 128), 0.5 * sqrt(16 / 64)]
        net(torch.ones(2, 8))
        assert net.noise.p == 0.2
    assert (net.noise.p, net.shared.p) == (0.2, 0.5)
    net(torch.ones(2, 8))
    assert net.seen[4:] == [0.5, 0.5]


def test_half_of_the_neurons_of_every_layer_halve_the_rate() -> None:
    """Connections go with the square of the neurons, so the rate goes with their number."""
    net = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.4), nn.Linear(16, 2)
    )
    plan = sec.plan(sec.trace(net, torch.ones(2, 8)), amount=0.5)
    small = plan.apply(net)
    with rescaled_dropout(small, plan):
        small(torch.ones(2, 8))
        assert small[3].p == pytest.approx(0.2)
    assert small[3].p == 0.4


def test_units_that_are_dropped_are_so_many() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 100_000, bias=False), nn.Dropout(0.5))
    nn.init.ones_(net[0].weight)
    mask = torch.zeros(100_000, 1, dtype=torch.bool)
    mask[:36_000] = True
    with rescaled_dropout(net, sec.MaskSet({"0.weight": mask})):
        zero = float((net(torch.ones(1, 1)) == 0).float().mean())
    assert zero == pytest.approx(0.5 * 0.6, abs=0.01)


@pytest.mark.parametrize("wanted", [True, False])
def test_fine_tuning_uses_it_where_it_is_asked_to(wanted: bool) -> None:
    net = Net()
    data = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 3]))] * 2
    FineTune(rescale_dropout=wanted, progress=False).heal(net, _masks(net, 8, 16), data)
    assert net.seen == ([0.125, 0.25] if wanted else [0.5, 0.5]) * 2
    assert net.shared.p == 0.5


def test_rates_come_back_after_an_error() -> None:
    net = Net()
    with pytest.raises(DataError):
        FineTune(rescale_dropout=True, progress=False).heal(
            net, _masks(net, 8, 16), [(torch.randn(4, 8), torch.ones(9))]
        )
    assert net.shared.p == 0.5
