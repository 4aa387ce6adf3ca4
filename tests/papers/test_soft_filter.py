"""Soft filter pruning, asymptotic and by geometric median, against loops written out."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from during_runs import convolutional, pictures, train
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.asymptotic_soft_filter import asymptotic


def norm_order(filters) -> list[int]:
    return sorted(range(len(filters)), key=lambda i: float(filters[i].norm()))


def median_order(filters) -> list[int]:
    distance = [sum(float((a - b).norm()) for b in filters) for a in filters]
    return sorted(range(len(filters)), key=lambda i: distance[i])


@pytest.mark.parametrize(
    ("name", "order", "rate"),
    [
        ("soft_filter", norm_order, lambda t: 0.4),
        ("fpgm", median_order, lambda t: 0.4),
        ("asymptotic_soft_filter", norm_order, lambda t: asymptotic(t, 0, 0.4)),
    ],
)
def test_training_equals_the_loop_written_out(name, order, rate) -> None:
    net, plain = convolutional(), convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    handle = sec.attach(
        net, optimizer, name, amount=0.4, every=2, steps=6, example_inputs=pictures(1)[0][0]
    )
    train(net, optimizer, pictures(6))
    gone = {}

    def zero(step: int) -> None:
        if (step + 1) % 2:
            return
        gone.clear()
        exact = {0: 8 * rate((step + 1) / 6), 3: 10 * rate((step + 1) / 6)}
        keep = {0: int(8 - exact[0] + 1e-9), 3: int(10 - exact[3] + 1e-9)}
        rest = round(18 - exact[0] - exact[3]) - keep[0] - keep[3]
        for layer in sorted(keep, key=lambda k: keep[k] + exact[k])[:rest]:
            keep[layer] += 1
        for layer, k in keep.items():
            weight = plain[layer].weight
            gone[layer] = order(list(weight.detach()))[: len(weight) - k]
            with torch.no_grad():
                weight[gone[layer]] = 0

    def limit(*_: object) -> None:
        for layer, zeroed in gone.items():
            gradient = plain[layer].weight.grad
            size = gradient[0].numel()
            rest = [i for i in range(len(gradient)) if i not in zeroed]
            kept = sum(float(gradient[i].square().sum()) for i in rest) / size / len(rest)
            lost = sum(float(gradient[i].square().sum()) for i in zeroed) / size / len(zeroed)
            if lost > kept:
                gradient[zeroed] *= math.sqrt(kept / lost)

    beside = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    beside.register_step_pre_hook(limit)
    train(plain, beside, pictures(6), after=zero)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, msg=key)
    result = handle.finish(remove=True, example_inputs=pictures(1)[0][0])
    assert result.verification.ok
    assert result.model[0].out_channels == 8 - len(gone[0]) == 5
    assert result.model[3].out_channels == 10 - len(gone[3]) == 6
    for layer in (0, 3):
        assert not net[layer].weight[gone[layer]].any() and not net[layer].bias[gone[layer]].any()


def test_a_filter_that_was_zeroed_trains_on_and_may_come_back() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = pictures(1)[0][0]
    handle = sec.attach(
        net, optimizer, "soft_filter", amount=0.5, every=2, steps=40, example_inputs=x
    )
    train(net, optimizer, pictures(2))
    first = handle.masks["0.weight"].flatten(1).any(1)
    assert not net[0].weight[~first].any() and net[1].weight[~first].any()
    seen = net[1].bias[~first] > 0  # behind the ReLU a zeroed filter is its norm's shift alone
    assert seen.any()
    train(net, optimizer, pictures(1))
    assert torch.equal(net[0].weight[~first].flatten(1).any(1), seen)
    with torch.no_grad():
        net[0].weight[~first] *= 1e4  # as after more steps than a test has
    train(net, optimizer, pictures(1))
    second = handle.masks["0.weight"].flatten(1).any(1)
    assert torch.equal(second[~first], seen) and int(second.sum()) == 4


def test_a_zeroed_filter_before_a_norm_does_not_come_back_by_a_leap() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net,
        optimizer,
        "soft_filter",
        amount=0.5,
        every=2,
        steps=40,
        example_inputs=pictures(1)[0][0],
    )
    train(net, optimizer, pictures(3))
    kept = handle.masks["0.weight"].flatten(1).any(1)
    sizes = net[0].weight.detach().flatten(1).norm(dim=1)
    assert 0 < float(sizes[~kept].max()) < 0.5 * float(sizes[kept].min())


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    def start():
        net = convolutional()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        x = pictures(1)[0][0]
        return net, optimizer, sec.attach(
            net, optimizer, "fpgm", amount=0.4, every=2, steps=8, example_inputs=x
        )  # fmt: skip

    net, optimizer, handle = start()
    train(net, optimizer, pictures(8))
    first = start()
    train(*first[:2], pictures(8)[:5])
    again = start()
    for old, new in zip(first, again, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(*again[:2], pictures(8)[5:])
    assert again[2].masks == handle.masks
    for key, value in net.state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key]), key


def test_duplicates_are_nearest_to_the_median_and_shifts_change_nothing() -> None:
    def kept(weight):
        net = nn.Sequential(nn.Linear(6, 8, bias=False))
        net[0].weight.data.copy_(weight)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        handle = sec.attach(
            net, optimizer, "fpgm", amount=0.25, every=1, steps=1, granularity="row"
        )
        net(torch.randn(3, 6)).sum().backward()
        optimizer.step()
        return handle.finish().masks["0.weight"].any(1)

    # corners of a cube, far apart, and two of the filters in its middle
    corners = torch.eye(6) * 4
    weight = torch.cat([corners, torch.full((2, 6), 4 / 6)])[[0, 6, 1, 2, 7, 3, 4, 5]]
    assert kept(weight).tolist() == [True, False, True, True, False, True, True, True]
    assert torch.equal(kept(weight), kept(weight + torch.arange(6.0)))
    assert torch.equal(kept(weight), kept(weight * 7))


def test_criteria_of_filters_need_units_that_are_filters() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, "fpgm", every=1, steps=1, granularity="element")
    net(torch.randn(2, 1, 9, 9)).sum().backward()
    with pytest.raises(ConfigError, match="granularity='channel'"):
        optimizer.step()


def test_the_asymptotic_curve_goes_through_its_three_points() -> None:
    assert asymptotic(0, 0, 0.4) == 0
    assert asymptotic(1 / 8, 0, 0.4) == pytest.approx(0.3)
    assert asymptotic(1, 0, 0.4) == pytest.approx(0.4)
    curve = [asymptotic(t / 50, 0, 0.4) for t in range(51)]
    assert all(a <= b for a, b in pairwise(curve))
