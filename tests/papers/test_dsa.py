"""DSA: the soft mask against an independent root finder and finite differences; the budget."""

import pytest
import torch
from during_runs import convolutional, pictures, train
from scipy.optimize import brentq

import secateur as sec
from secateur.errors import ConfigError
from secateur.measure.macs import macs
from secateur.methods.during.dsa import soft_mask

SIZES = torch.tensor([0.3, 1.0, 0.02, 2.5, 0.7, 0.9], dtype=torch.float64)


def brent(share: float, sharpness: float) -> torch.Tensor:
    def p(log: float) -> torch.Tensor:
        return 1 / (1 + (SIZES / torch.tensor(log).double().exp()) ** -sharpness)

    return p(brentq(lambda log: float(p(log).mean()) - share, -60, 60, xtol=1e-13))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_probabilities_have_the_mean_asked_and_the_implicit_gradient(share, sharpness) -> None:
    alpha = torch.tensor(share, dtype=torch.float64, requires_grad=True)
    p = soft_mask(SIZES, alpha, sharpness)
    assert float(p.detach().mean()) == pytest.approx(share, abs=1e-6)
    torch.testing.assert_close(p.detach(), brent(share, sharpness), atol=1e-6, rtol=0)
    difference = (brent(share + 1e-6, sharpness) - brent(share - 1e-6, sharpness)) / 2e-6
    slopes = torch.stack([torch.autograd.grad(x, alpha, retain_graph=True)[0] for x in p])
    torch.testing.assert_close(slopes, difference, atol=1e-3, rtol=3e-3)


def test_when_sharp_it_is_the_largest() -> None:
    p = soft_mask(SIZES, torch.tensor(0.5), 1e4)
    assert (p > 0.5).tolist() == [False, True, False, True, False, True]
    assert float((p - p.round()).abs().max()) < 1e-3


def attached(steps: int = 20, **options):
    net, x = convolutional(), pictures(1)[0][0]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, "dsa", steps=steps, example_inputs=x, validation=pictures(3, 5), **options
    )
    return net, optimizer, handle


@pytest.mark.parametrize("budget", [0.6, 0.3])
def test_the_budget_is_met_by_what_is_measured(budget) -> None:
    net, optimizer, handle = attached(macs=budget)
    dense, x = convolutional(), pictures(1)[0][0]
    train(net, optimizer, pictures(20))
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    share = macs(result.model, x)[0] / macs(dense, x)[0]
    assert 0.7 * budget < share <= budget


def test_the_multiplier_rises_while_too_much_is_kept_and_pushes_the_shares_down() -> None:
    net, optimizer, handle = attached(steps=60, macs=0.3, end=1.0, lr=0.02)
    duals, shares = [], []

    def look(step: int) -> None:
        duals.append(float(handle.moment.state["dual"]))
        shares.append([float(a["theta"].detach().sigmoid()) for a in handle.gated.aux.values()])

    train(net, optimizer, pictures(50), after=look)
    assert duals == sorted(duals) and duals[0] > 0
    assert all(b < a for a, b in zip(shares[0], shares[-1], strict=True))


def test_weights_alone_never_move_the_shares() -> None:
    net, optimizer, handle = attached(macs=1.0)
    before = {s: a["theta"].detach().clone() for s, a in handle.gated.aux.items()}
    moved = []
    for x, y in pictures(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        for a in handle.gated.aux.values():
            moved.append(a["theta"].grad)
    assert all(torch.equal(a["theta"], before[s]) for s, a in handle.gated.aux.items())
    optimizer.step()
    assert any(bool((a["theta"] != before[s]).any()) for s, a in handle.gated.aux.items())


def test_a_budget_out_of_range_or_out_of_reach_is_said() -> None:
    with pytest.raises(ConfigError, match="macs and end"):
        attached(macs=1.5)
    net, optimizer, _ = attached(macs=1e-4)
    with pytest.raises(ConfigError, match="least width"):
        train(net, optimizer, pictures(20))
