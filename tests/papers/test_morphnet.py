"""MorphNet: its charge written out for chains and residual streams, its cost, its expansion."""

import pytest
import torch
from during_runs import convolutional, pictures, train
from test_taylor_fo import Residual
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.measure.macs import macs
from secateur.methods.during.morphnet import alive
from secateur.methods.widths import sizes
from secateur.plan.widths import macs_share, widened


def attached(net, lr: float = 0.0, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    handle = sec.attach(
        net, optimizer, "morphnet", steps=10, example_inputs=pictures(1)[0][0], **options
    )
    return optimizer, handle


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def test_the_charge_is_what_the_paper_writes_for_a_chain() -> None:
    net = chain()
    first, second = net[1].weight, net[4].weight
    with torch.no_grad():
        first.copy_(torch.tensor([0.5, -0.3, 0.001, 0.8]))
        second.copy_(torch.tensor([0.2, 0.0, -0.7, 0.4, 0.005, 0.1]))
    _, handle = attached(net, strength=2.0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    handle.method.penalty.gradients(handle.moment)
    # multiplications for each pair of channels: 7 x 7 and 5 x 5 positions, then the classifier
    a, b, c = 49 * 9, 25 * 9, 5
    dense = a * 1 * 4 + b * 4 * 6 + c * 6
    alive_in, alive_out = 3, 4
    torch.testing.assert_close(
        first.grad, 2.0 / dense * (a + b * alive_out) * first.detach().sign()
    )
    torch.testing.assert_close(
        second.grad, 2.0 / dense * (b * alive_in + c) * second.detach().sign()
    )
    assert not any(
        bool(p.grad.any()) for p in net.parameters() if p is not first and p is not second
    )


def test_a_residual_stream_is_as_large_as_its_largest_scale() -> None:
    net = Residual()
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([1.0, -0.5, 0.2, 0.3, 0.0, 0.1]))
        net.after.weight.copy_(torch.tensor([0.5, 0.6, -0.3, 0.2, 0.4, 0.0]))
    _, handle = attached(net, strength=1.0)
    (size,) = sizes(handle.moment).values()
    torch.testing.assert_close(size, torch.tensor([1.0, 0.6, 0.3, 0.3, 0.4, 0.1]))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    handle.method.penalty.gradients(handle.moment)
    assert (net.norm.weight.grad != 0).tolist() == [True, False, False, True, False, True]
    assert (net.after.weight.grad != 0).tolist() == [False, True, True, False, True, False]


def test_the_cost_of_widths_is_what_is_measured_after_removal() -> None:
    net, x = convolutional(), pictures(1)[0][0]
    graph = sec.trace(net, x)
    names = list(graph.free)
    assert float(macs_share(graph, graph.sizes)) == 1.0
    plan = sec.plan(graph, amount=0.5)
    left = {n: graph.sizes[n] - plan.removed.get(n, 0) for n in names}
    share = macs(plan.apply(net), x)[0] / macs(net, x)[0]
    assert float(macs_share(graph, left)) == pytest.approx(share)


def test_what_is_charged_more_than_it_is_worth_goes_and_the_rest_trains_on() -> None:
    net = convolutional()
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(0.2, 1, 8))
    optimizer, handle = attached(net, lr=0.1, strength=3.0, threshold=0.3, end=0.5)
    train(net, optimizer, pictures(10))
    mask = handle.masks["1.weight"]
    assert 0 < int(mask.sum()) < 8
    result = handle.finish(remove=True, example_inputs=pictures(1)[0][0])
    assert result.verification.ok and result.model[0].out_channels == int(mask.sum())


def test_the_expansion_is_the_widest_that_fits() -> None:
    net, x = convolutional(), pictures(1)[0][0]
    graph = sec.trace(net, x)
    first, second = graph.free
    wide = widened(graph, {first: 2, second: 8})
    assert wide[second] / wide[first] == pytest.approx(4, rel=0.5)
    assert float(macs_share(graph, wide)) <= 1
    more = {n: k + 1 for n, k in wide.items()}
    assert float(macs_share(graph, more)) > 1


def test_options_out_of_range_are_said() -> None:
    with pytest.raises(ConfigError, match="strength"):
        attached(chain(), strength=-1.0)


def test_the_largest_of_a_layer_lives_however_small_it_is() -> None:
    sizes = torch.tensor([0.001, 0.003, 0.002])
    assert alive(sizes, 0.01).tolist() == [False, True, False]
    assert alive(sizes, 0.0015).tolist() == [False, True, True]
