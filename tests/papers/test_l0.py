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
