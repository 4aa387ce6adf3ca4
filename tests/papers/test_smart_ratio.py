"""Densities from shapes: smart ratios, ER, ERK and uniform against published numbers."""

from functools import partial
from math import prod

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.scope.allocation import find
from secateur.scope.erk import er, erk
from secateur.scope.smart_ratio import smart_ratio

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
NAMED = {"a": (2, 4), "b": (3, 6), "c": (2, 4, 6)}  # of JaxPruner's tests
VGG = {f"conv{i}": (64, 64, 3, 3) for i in range(8)} | {"fc": (10, 64)}


def kept(densities, shapes) -> float:
    return sum(densities[n] * prod(s) for n, s in shapes.items())


@pytest.mark.parametrize(
    ("allocate", "shapes", "amount", "sparsities"),
    [
        (erk, NAMED, 0.5, [0, 0.3095, 0.6548]),
        # Published for 0.8, where RigL rounds the zeros of each layer down: 16 of 74 stay.
        (erk, NAMED, 1 - 16 / 74, [0.5556, 0.7037, 0.8519]),
        (partial(erk, power=2), NAMED, 0.5, [0, 0.033, 0.758]),
        (er, {**NAMED, "c": (4, 6, 2)}, 0.5, [0.21, 0.47, 0.56]),
        (erk, LENET, 0.9, [1 - 0.07957, 1 - 0.23019, 0]),
        (erk, LENET, 0.95, [1 - 0.03848, 1 - 0.11133, 1 - 0.91851]),
        (partial(erk, power=0), LENET, 0.9, [0.9, 0.9, 0.9]),
        (find("uniform"), LENET, 0.9, [0.9, 0.9, 0.9]),
    ],
)
def test_published_allocations(allocate, shapes, amount, sparsities) -> None:
    found = allocate(shapes, amount)
    assert [1 - d for d in found.values()] == pytest.approx(sparsities, abs=5e-3)
    assert kept(found, shapes) == pytest.approx(
        (1 - amount) * kept(dict.fromkeys(shapes, 1), shapes)
    )


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("shapes", [VGG, LENET, {"only": (4, 4)}])
@pytest.mark.parametrize("steep", [False, True])
def test_smart_ratios_keep_as_much_as_asked_and_fall_with_depth(shapes, amount, steep) -> None:
    found = smart_ratio(shapes, amount, steep=steep)
    assert kept(found, shapes) == pytest.approx(
        (1 - amount) * kept(dict.fromkeys(shapes, 1), shapes)
    )
    assert all(0 < d <= 1 for d in found.values())
    body = list(found.values())[:-1] or [1.0]
    assert body == sorted(body, reverse=True)


def test_smart_ratios_are_the_formula_of_the_paper() -> None:
    found = smart_ratio(VGG, 0.9)
    size = 64 * 64 * 9
    raw = [(8 - k + 1) ** 2 + (8 - k + 1) for k in range(1, 9)]
    total = 0.1 * (8 * size + 640) - 0.3 * 640
    expected = [p * total / (sum(raw) * size) for p in raw]
    assert list(found.values()) == pytest.approx([*expected, 0.3])
    steep = [p / k**2 for k, p in enumerate(raw, 1)]
    found = smart_ratio(VGG, 0.95, steep=True)
    total = 0.05 * (8 * size + 640) - 0.3 * 640
    assert list(found.values()) == pytest.approx(
        [*(p * total / (sum(steep) * size) for p in steep), 0.3]
    )


def test_a_classifier_larger_than_what_stays_is_an_error() -> None:
    shapes = {"conv": (4, 1, 3, 3), "fc": (10, 400)}
    with pytest.raises(ConfigError, match="classifier="):
        smart_ratio(shapes, 0.9)
    assert kept(smart_ratio(shapes, 0.9, classifier=0.1), shapes) == pytest.approx(403.6)


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_method_draws_masks_inside_layers_and_hybrid_keeps_the_largest(hybrid) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 4))
    dense = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "smart-ratio", amount=0.6, seed=1, hybrid=hybrid)
    wanted = smart_ratio({n: tuple(m.shape) for n, m in handle.masks.items()}, 0.6)
    for n, mask in handle.masks.items():
        assert abs(int(mask.sum()) - wanted[n] * mask.numel()) <= 1
        sizes = dense[n].abs()
        largest = float(sizes[mask].min()) >= float(sizes[~mask].max()) if not mask.all() else True
        assert largest is hybrid or bool(mask.all())
