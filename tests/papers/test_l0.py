"""Hard concrete gates against a Monte-Carlo estimate and closed forms."""

import math

import pytest
import torch
from gate_runs import attached, batches, train
from torch import nn

import secateur as sec
from secateur.methods.during.l0 import hard_concrete, open_probability


@pytest.mark.parametrize(("log_alpha", "golden"), [(-2.0, 0.40098), (0.0, 0.83182), (2.0, 0.97337)])
def test_the_probability_of_an_open_gate_is_its_frequency(log_alpha, golden) -> None:
    at = torch.tensor([log_alpha])
    uniform = torch.rand(400_000, generator=torch.Generator().manual_seed(0))
    frequency = float((hard_concrete(at, uniform) != 0).float().mean())
    assert float(open_probability(at)) == pytest.approx(golden, abs=1e-5)
    assert frequency == pytest.approx(golden, abs=4e-3)


def test_the_charge_is_the_expected_density_and_the_weighted_squares() -> None:
    options = {"strength": 3.0, "decay": 0.7, "dropped": 0.2}
    net, _, handle = attached(("l0", options))
    aux = handle.gated.aux
    odds = 1 / (1 + (-(aux["weight"]["log_alpha"] - 2 / 3 * math.log(1 / 11))).exp())
    assert aux["weight"]["log_alpha"].mean().item() == pytest.approx(math.log(4), abs=0.02)
    expected = 3.0 * odds.mean() + 0.35 * (odds * net.weight**2).sum()
    torch.testing.assert_close(handle.gated.gate.loss(aux, handle.moment), expected)


def test_a_strong_charge_closes_gates_and_what_is_closed_is_zero() -> None:
    net, optimizer, handle = attached(("l0", {"strength": 1e3, "lr": 0.5}))
    train(net, optimizer, batches(10))
    deterministic = (handle.gated.aux["weight"]["log_alpha"].sigmoid() * 1.2 - 0.1).clamp(0, 1)
    expected = (net.weight * deterministic).detach()
    net.eval()
    x = batches(1)[0][0]
    torch.testing.assert_close(net(x), x @ expected.T)  # no noise where nothing is trained
    result = handle.finish()
    torch.testing.assert_close(net.weight.detach(), expected)
    assert result.masks.sparsity == 1.0


def test_channels_have_gates_of_their_own_and_can_be_removed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x = torch.randn(6, 4)
    handle = sec.attach(
        net, optimizer, ("l0", {"granularity": "channel"}), amount=0.6, steps=4, example_inputs=x
    )
    for _ in range(4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok and result.model[0].out_features == 4


@pytest.mark.parametrize("granularity", ["1:4", "channel"])
def test_gates_of_units_compete_as_their_granularity_says(granularity: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    handle = sec.attach(
        net, optimizer, ("l0", {"granularity": granularity}), amount=0.5, steps=1, ignore=["4"],
        example_inputs=torch.randn(6, 8),
    )  # fmt: skip
    with torch.no_grad():
        for number, aux in enumerate(handle.gated.aux.values()):
            aux["log_alpha"] += 3 * number  # one ranking over all: the first layer has the lowest
    net(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()
    masks = handle.finish().masks
    if granularity == "1:4":
        for name in ("0.weight", "2.weight"):
            assert bool(((~masks[name]).view(12, -1, 4).sum(2) == 1).all())
    else:
        assert 0 < masks.densities()["0.weight"] < 0.2 and masks.densities()["2.weight"] > 0.7


def test_gates_stay_where_they_can_still_learn() -> None:
    net, optimizer, handle = attached(("l0", {"lr": 5.0}))
    train(net, optimizer, batches(4))
    log_alpha = handle.gated.aux["weight"]["log_alpha"].detach()
    assert float(log_alpha.abs().max()) == pytest.approx(math.log(100))
