"""DMCP: marginals and expected costs against sampled chains, the budget against measured MACs."""

import pytest
import torch
from during_runs import convolutional, pictures, train

import secateur as sec
from secateur.errors import ConfigError
from secateur.measure.macs import macs
from secateur.methods.during.dmcp import marginals
from secateur.methods.widths import budget_loss
from secateur.plan.widths import macs_share


def attached(steps: int = 20, **options):
    net, x = convolutional(), pictures(1)[0][0]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, "dmcp", steps=steps, example_inputs=x, validation=pictures(3, 5), **options
    )
    return net, optimizer, handle


def test_marginals_and_expected_width_are_those_of_sampled_chains() -> None:
    alpha = torch.tensor([2.0, 0.0, -1.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(200_000, 4, generator=generator) < alpha.sigmoid()
    stays = torch.cat([torch.ones(len(steps), 1), steps.float().cumprod(1)], 1)
    chain = marginals(alpha, 10)  # two channels a group
    torch.testing.assert_close(chain[::2], stays.mean(0), atol=5e-3, rtol=0)
    assert float(chain.sum()) == pytest.approx(2 * float(stays.sum(1).mean()), abs=0.02)
    assert bool((chain.diff() <= 0).all())
    torch.testing.assert_close(marginals(torch.full((4,), 40.0), 10), torch.ones(10))


def test_expected_macs_are_the_mean_over_sampled_networks() -> None:
    _, _, handle = attached()
    gate, aux, moment = handle.gated.gate, handle.gated.aux, handle.moment
    with torch.no_grad():
        for a in aux.values():
            a["alpha"].uniform_(0.5, 2.0)
    generator = torch.Generator().manual_seed(1)
    widths = {}
    for space, a in aux.items():
        units, groups = int(a["units"]), len(a["alpha"]) + 1
        steps = torch.rand(4000, groups - 1, generator=generator) < a["alpha"].detach().sigmoid()
        alive = torch.cat([torch.ones(4000, 1), steps.float().cumprod(1)], 1)
        group = torch.arange(units) * groups // units
        widths[space] = alive[:, group].sum(1)
    graph = moment.units.graph
    sampled = macs_share(graph, widths).mean()  # all sampled networks at once
    assert float(gate.expected(aux, moment).detach()) == pytest.approx(float(sampled), rel=0.02)


def test_weights_see_networks_of_leading_channels_and_the_chain_sees_marginals() -> None:
    _, _, handle = attached(warm=0.0)
    gated, moment = handle.gated, handle.moment
    kinds = []
    for step in range(4):
        moment.step = step
        for space, factor in gated.factors().items():
            value = factor.detach()
            assert set(value.tolist()) <= {0.0, 1.0} and float(value[0]) == 1
            assert bool((value.diff() <= 0).all())
            kinds.append((step, space, float(value.mean())))
    assert all(mean == 1 for step, _, mean in kinds if step == 0)
    assert all(mean < 0.26 for step, _, mean in kinds if step == 1)
    with torch.no_grad():  # a chain that is sure: of the four networks the two random ones differ
        for a in gated.aux.values():
            a["alpha"].fill_(40.0)
    means = []
    for step in range(8):
        moment.step = step
        means.append(min(float(f.detach().mean()) for f in gated.factors().values()))
    assert [m == 1 for m in means] == [True, False, True, True] * 2
    moment.validating = True
    for space, factor in gated.factors().items():
        aux = gated.aux[space]
        torch.testing.assert_close(factor, marginals(aux["alpha"], int(aux["units"])))


def test_the_loss_of_the_budget_has_the_authors_slopes() -> None:
    for cost in (0.9, 0.52, 0.45, 0.1):
        e = torch.tensor(cost, requires_grad=True)
        budget_loss(e, 0.5).backward()
        known = torch.tensor(cost, requires_grad=True)
        (known - (0.95 * 0.5 if cost > 0.5 else 0.5)).abs().log().backward()
        torch.testing.assert_close(e.grad, known.grad)
    for cost in (0.48, 0.499):
        e = torch.tensor(cost, requires_grad=True)
        value = budget_loss(e, 0.5)
        value.backward()
        assert float(value.detach()) == 0 and float(e.grad) == 0


@pytest.mark.parametrize("budget", [0.6, 0.35])
def test_the_budget_is_met_by_what_is_measured(budget) -> None:
    net, optimizer, handle = attached(macs=budget, warm=0.1)
    dense, x = convolutional(), pictures(1)[0][0]
    train(net, optimizer, pictures(20))
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    share = macs(result.model, x)[0] / macs(dense, x)[0]
    assert 0.7 * budget < share <= budget


def test_the_chain_waits_until_the_weights_are_warm() -> None:
    net, optimizer, handle = attached(steps=10, warm=0.5, end=1.0)
    train(net, optimizer, pictures(5))
    assert not any(bool(a["alpha"].any()) for a in handle.gated.aux.values())
    train(net, optimizer, pictures(2))
    assert all(bool(a["alpha"].any()) for a in handle.gated.aux.values())


def test_a_budget_out_of_range_is_said() -> None:
    with pytest.raises(ConfigError, match="macs=0"):
        attached(macs=0.0)
