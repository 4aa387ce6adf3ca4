"""Least squares: exact where it can be, optimal where not, and honest about the rest."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, DataError
from secateur.recovery import LeastSquares
from secateur.recovery.kept import kept_indices


def sliced(layer: nn.Module, rows=None, columns=None) -> nn.Module:
    """The layer with only these outputs and inputs, made without the library."""
    weight = layer.weight.data
    weight = weight if rows is None else weight[rows]
    bias = layer.bias if layer.bias is None or rows is None else layer.bias[rows]
    weight = weight if columns is None else weight[:, columns]
    new = copy.deepcopy(layer)
    new.weight = nn.Parameter(weight.clone())
    new.bias = None if bias is None else nn.Parameter(bias.data.clone())
    for attribute, size in (("out", weight.shape[0]), ("in", weight.shape[1])):
        for kind in ("features", "channels"):
            if hasattr(new, f"{attribute}_{kind}"):
                setattr(new, f"{attribute}_{kind}", size)
    return new


def outputs(model, xs):
    with torch.no_grad():
        return torch.cat([copy.deepcopy(model).eval()(x) for x in xs])


def inputs(*shape, count=4):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_combinations_of_kept_inputs_are_reconstructed_exactly(bias, sequential):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(3, 10, bias=bias), nn.Linear(10, 5, bias=bias))
    keep = torch.tensor([0, 3, 4, 8, 9])  # five numbers span the rank of 3 (+ 1 with a bias)
    pruned = nn.Sequential(sliced(dense[0], rows=keep), sliced(dense[1], columns=keep))
    xs = inputs(20, 3)
    assert (outputs(pruned, xs) - outputs(dense, xs)).abs().max() > 0.1
    how = LeastSquares(ridge=0.0, sequential=sequential)
    report = how.heal(pruned, None, xs, dense)
    torch.testing.assert_close(outputs(pruned, xs), outputs(dense, xs), rtol=1e-4, atol=1e-5)
    fresh = [10 * torch.randn(7, 3)]
    torch.testing.assert_close(outputs(pruned, fresh), outputs(dense, fresh), rtol=1e-3, atol=1e-4)
    assert report["layers"]["1"]["before"] > 0.1
    assert report["layers"]["1"]["after"] < 1e-5
    assert report["layers"]["1"]["samples"] == 80
    assert report["skipped"] == {}


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Conv2d(8, 6, (3, 2), dilation=2, padding="same", padding_mode="reflect", bias=False),
        nn.Conv2d(8, 6, 1),
    ],
)
def test_convolutions_are_reconstructed_exactly_when_a_channel_repeats_another(conv):
    torch.manual_seed(0)
    first = nn.Conv2d(2, 8, 3)
    for copy_, of, factor in ((1, 0, 2.0), (5, 4, 0.5), (6, 4, 3.0)):
        first.weight.data[copy_] = factor * first.weight.data[of]
        first.bias.data[copy_] = factor * first.bias.data[of]
    dense = nn.Sequential(first, nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(6, 3, 1))
    keep, out = torch.tensor([0, 2, 3, 4, 7]), torch.tensor([0, 1, 4, 5])
    pruned = nn.Sequential(
        sliced(first, rows=keep), nn.ReLU(), sliced(conv, out, keep), nn.ReLU(),
        sliced(dense[4], columns=out),
    )  # fmt: skip
    xs = inputs(4, 2, 9, 9)
    report = LeastSquares(ridge=0.0, layers=["2"]).heal(pruned, None, xs, dense)
    assert list(report["layers"]) == ["2"]
    assert report["layers"]["2"]["after"] < 1e-5
    with torch.no_grad():
        wanted = dense[:3](xs[0])[:, out]
        torch.testing.assert_close(pruned[:3](xs[0]), wanted, rtol=1e-3, atol=1e-4)


def test_conv1d_and_transposed_linear_layers_too():
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers.pytorch_utils")

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv1d(width, 6, 3, padding=1)
            self.line = transformers.Conv1D(4, width)

        def forward(self, x):
            return self.conv(x).sum(-1)[:, :4] + self.line(x.movedim(1, 2).contiguous()).sum(1)

    dense, pruned = Net(5), Net(3)
    keep = torch.tensor([0, 2, 4])
    pruned.conv = sliced(dense.conv, columns=keep)
    pruned.line.weight.data = dense.line.weight.data[keep].clone()
    pruned.line.bias.data = dense.line.bias.data.clone()
    xs = inputs(6, 3, 9)
    mix = torch.randn(5, 3)
    mix[keep] = torch.eye(3)
    how = LeastSquares(ridge=0.0, forward=lambda m, x: m(x if m is pruned else mix @ x))
    report = how.heal(pruned, None, xs, dense)
    assert sorted(report["layers"]) == ["conv", "line"]
    torch.testing.assert_close(
        outputs(pruned, xs), outputs(dense, [mix @ x for x in xs]), rtol=1e-3, atol=1e-3
    )


def test_with_noise_it_is_numpys_least_squares_and_the_reported_error_is_real():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    keep = torch.arange(0, 12, 2)
    pruned = nn.Sequential(sliced(dense[0], rows=keep), nn.Tanh(), sliced(dense[2], columns=keep))
    xs = inputs(50, 6)
    x = outputs(pruned[:2], xs).double()
    y = outputs(dense, xs).double()
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(design, y).solution
    before = float((outputs(pruned, xs) - y).norm() / y.norm())
    report = LeastSquares(ridge=0.0).heal(pruned, None, xs, dense)["layers"]["2"]
    torch.testing.assert_close(pruned[2].weight.double(), solution[:-1].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pruned[2].bias.double(), solution[-1], rtol=1e-4, atol=1e-5)
    assert report["before"] == pytest.approx(before, rel=1e-4)
    after = float((outputs(pruned, xs) - y).norm() / y.norm())
    assert report["after"] == pytest.approx(after, rel=1e-4)
    assert after < 0.5 * before


def test_a_ridge_shrinks_towards_the_old_weight():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Linear(12, 4, bias=False))
    keep = torch.arange(7)
    start = nn.Sequential(sliced(dense[0], rows=keep), sliced(dense[1], columns=keep))
    xs = inputs(30, 6)
    x, y = outputs(start[:1], xs).double(), outputs(dense, xs).double()
    old = start[1].weight.double()
    gram = x.T @ x
    strength = 0.3 * gram.diagonal().mean()
    change = torch.linalg.solve(gram + strength * torch.eye(7), x.T @ (y - x @ old.T))
    LeastSquares(ridge=0.3).heal(start, None, xs, dense)
    torch.testing.assert_close(start[1].weight.double(), old + change.T, rtol=1e-5, atol=1e-6)
    still = nn.Sequential(sliced(dense[0], rows=keep), sliced(dense[1], columns=keep))
    LeastSquares(ridge=1e9).heal(still, None, xs, dense)
    torch.testing.assert_close(still[1].weight.double(), old, rtol=1e-5, atol=1e-6)


def test_in_sequence_each_layer_sees_the_mended_ones_before_it():
    torch.manual_seed(0)
    widths = (6, 16, 16, 16, 4)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    dense = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
    keep = [torch.arange(6), *[torch.randperm(16)[:11].sort().values for _ in range(3)],
            torch.arange(4)]  # fmt: skip
    xs = inputs(200, 6)
    errors = {}
    for sequential in (False, True):
        pruned = copy.deepcopy(dense)
        for i in range(4):
            pruned[2 * i] = sliced(dense[2 * i], keep[i + 1], keep[i])
        report = LeastSquares(sequential=sequential).heal(pruned, None, xs, dense)
        assert sorted(report["layers"]) == ["2", "4", "6"]
        errors[sequential] = float((outputs(pruned, xs) - outputs(dense, xs)).norm())
    assert errors[True] < errors[False]


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x):
            return self.down(self.up(self.down(self.up(x))))

    dense = Twice(12)
    pruned, keep = copy.deepcopy(dense), torch.arange(6)
    pruned.up, pruned.down = sliced(dense.up, rows=keep), sliced(dense.down, columns=keep)
    xs = inputs(30, 4)
    report = LeastSquares(ridge=0.0).heal(pruned, None, xs, dense)
    assert report["layers"]["down"]["samples"] == 2 * 4 * 30


def test_what_is_left_alone_is_said_and_stays():
    torch.manual_seed(0)
    dense = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "tied": nn.Linear(8, 5),
            "again": nn.Linear(8, 5),
            "spare": nn.Linear(8, 5),
            "volume": nn.Conv3d(8, 2, 1),
            "trained": nn.Linear(8, 5),
        }
    )
    pruned = copy.deepcopy(dense)
    keep = torch.arange(4)
    pruned["grouped"] = nn.Conv2d(4, 8, 3, groups=2)
    for name in ("tied", "again", "spare", "volume", "trained"):
        pruned[name] = sliced(dense[name], columns=keep)
    pruned["again"].weight = pruned["tied"].weight
    pruned["trained"] = sliced(dense["trained"], torch.arange(3), keep)
    pruned["trained"].weight.data += 0.01
    before = copy.deepcopy(pruned.state_dict())
    report = LeastSquares(forward=lambda m, x: x).heal(pruned, None, inputs(2, 2), dense)
    assert report["layers"] == {}
    words = {name: reason.split(":")[0] for name, reason in report["skipped"].items()}
    assert words == {
        "grouped": "grouped convolution",
        "tied": "its weight is shared with another layer or computed from others",
        "again": "its weight is shared with another layer or computed from others",
        "spare": "its forward is never called",
        "volume": "Conv3d is not supported",
        "trained": "its outputs could not be matched with the dense layer's",
    }
    assert all(torch.equal(v, before[k]) for k, v in pruned.state_dict().items())


def test_a_plan_places_weights_that_were_trained_since():
    class Plan:
        axes = {"w": ()}  # noqa: RUF012

        def masks(self, name):
            return [torch.tensor([1, 0, 1, 1]).bool(), torch.tensor([0, 1, 1]).bool()]

    rows, columns = kept_indices(torch.randn(4, 3), torch.randn(3, 2), Plan(), "w")
    assert rows.tolist() == [0, 2, 3]
    assert columns.tolist() == [1, 2]
    assert kept_indices(torch.randn(4, 3), torch.randn(3, 2)) is None
    assert kept_indices(torch.randn(5, 3), torch.randn(3, 2), Plan(), "w") is None


def test_places_are_found_among_many_equal_values():
    torch.manual_seed(0)
    dense = torch.randn(40, 30, 3, 3)
    dense[:, ::3] = 0.0
    rows, columns = torch.randperm(40)[:17].sort().values, torch.arange(1, 30, 3)
    found = kept_indices(dense, dense[rows][:, columns])
    assert torch.equal(found[0], rows)
    assert torch.equal(found[1], columns)


def test_bad_input_is_said_and_leaves_both_models_alone():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(3, 10), nn.Linear(10, 5))
    keep = torch.arange(5)
    pruned = nn.Sequential(sliced(dense[0], rows=keep), sliced(dense[1], columns=keep))
    before = copy.deepcopy(pruned.state_dict())
    xs = inputs(20, 3)
    for options, data, teacher, error, message in [
        ({}, xs, None, DataError, "pass teacher="),
        ({}, None, dense, DataError, "needs data"),
        ({}, [], dense, DataError, "yielded no batch"),
        ({}, [torch.zeros(2, 4)], dense, DataError, "could not be run"),
        ({}, [torch.full((2, 3), math.nan)], dense, DataError, "not finite"),
        ({"ridge": -1.0}, xs, dense, ConfigError, "ridge"),
        ({"layers": ["fc*"]}, xs, dense, ConfigError, r"\['fc\*'\]"),
    ]:
        with pytest.raises(error, match=message):
            LeastSquares(**options).heal(pruned, None, data, teacher)
    assert all(torch.equal(v, before[k]) for k, v in pruned.state_dict().items())
    assert not any(m._forward_hooks for n in (dense, pruned) for m in n.modules())
    assert all(m.training for m in pruned.modules())
