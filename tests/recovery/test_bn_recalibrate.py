"""Recalibrated statistics are the exact mean and variance of what each layer sees."""

import copy
import math

import pytest
import torch
from torch import nn

from secateur.errors import DataError
from secateur.recovery import BNRecalibrate


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 2),
    )  # fmt: skip


def batches():
    generator = torch.Generator().manual_seed(1)
    sizes = (5, 9, 2)
    return [
        (3 + 2 * torch.randn(n, 3, 8, 8, generator=generator), torch.zeros(n).long()) for n in sizes
    ]


def test_statistics_are_those_of_all_activations_at_once_whatever_the_batch_sizes():
    model = conv_net()
    report = BNRecalibrate().heal(model, data=batches())
    fresh = conv_net()
    with torch.no_grad():
        first = [fresh[0](x) for x, _ in batches()]
        # downstream of a layer in training mode, its own batch normalises
        second = [
            fresh[4](torch.relu((x - x.mean((0, 2, 3), keepdim=True))
            / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()))
            for x in first
        ]  # fmt: skip
    for layer, seen in ((model[1], first), (model[5], second)):
        everything = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1).double()
        torch.testing.assert_close(layer.running_mean, everything.mean(1).float())
        torch.testing.assert_close(layer.running_var, everything.var(1).float())
        assert layer.num_batches_tracked == 3
    assert report == {"recovery": "bn", "layers": 2, "batches": 3, "unused": []}


def test_one_batch_is_what_torch_itself_accumulates():
    ours, plain = conv_net(), conv_net()
    x = batches()[0][0]
    BNRecalibrate(batches=1).heal(ours, data=batches())
    plain.eval()
    for layer in (plain[1], plain[5]):
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        plain(x)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_only_statistics_change_and_modes_hooks_and_momentum_stay():
    model = conv_net()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    BNRecalibrate().heal(model, data=[x for x, _ in batches()])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{i}.{name}" for i in (1, 5) for name in statistics}
    assert not model[1].training
    assert model[5].training
    assert model[1].momentum == 0.1
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_it_mends_statistics_that_do_not_fit():
    model = conv_net()
    x = batches()[1][0]
    model[1].running_mean += 50
    model[5].running_var *= 100
    BNRecalibrate().heal(model, data=[x])
    model.eval()
    model[3].eval()
    normalised = model[:2](x)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)


def test_without_batch_norm_there_is_nothing_to_do():
    assert BNRecalibrate().heal(nn.Linear(2, 2))["layers"] == 0


def test_a_layer_that_never_runs_keeps_its_statistics_and_is_said():
    model = conv_net()
    model.spare = nn.BatchNorm2d(3)
    report = BNRecalibrate(forward=lambda m, b: m[:8](b[0])).heal(model, data=batches())
    assert report["unused"] == ["spare"]
    assert bool((model.spare.running_mean == 0).all())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "BNRecalibrate needs data"),
        ([], "yielded no batch"),
        ([torch.zeros(2, 4, 8, 8)], r"float32\[2, 4, 8, 8\]"),
        ([torch.full((2, 3, 8, 8), math.nan)], "input of 1 is not finite"),
    ],
)
def test_bad_data_are_an_error_and_the_statistics_stay(data, message):
    model = conv_net()
    before = copy.deepcopy(model.state_dict())
    good_then_bad = data if not data else [batches()[0], *data]
    with pytest.raises(DataError, match=message):
        BNRecalibrate().heal(model, data=good_then_bad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
