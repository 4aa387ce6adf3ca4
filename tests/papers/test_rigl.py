"""RigL: its uniform allocation leaves the first layer dense."""

import math

import pytest
import torch
from during_runs import dense, train, vectors
from torch import nn

import secateur as sec
from secateur.methods import registry


def test_uniform_keeps_the_first_layer_dense_and_erk_does_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Flatten(), nn.Linear(40, 5))
    found = {}
    for scope, first in (("uniform", True), ("uniform", False), ("erk", True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        handle = sec.attach(
            net, optimizer, "rigl", amount=0.9, scope=scope, dense_first=first, steps=1000
        )
        found[scope, first] = handle.masks.densities()
        handle.detach()
    assert found["uniform", True] == {"0.weight": 1.0, "1.weight": pytest.approx(0.1),
                                      "3.weight": pytest.approx(0.1)}  # fmt: skip
    assert found["uniform", False]["0.weight"] == pytest.approx(0.1, abs=0.005)
    assert found["erk", True]["0.weight"] < 1


def test_the_dense_layer_trains_on_while_the_others_exchange() -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    handle = sec.attach(net, optimizer, "rigl", amount=0.8, scope="uniform", steps=20, every=3)
    before, start = handle.masks, net[0].weight.detach().clone()
    train(net, optimizer, vectors(20))
    assert handle.masks["0.weight"].all() and bool((net[0].weight != start).any())
    assert not torch.equal(handle.masks["2.weight"], before["2.weight"])
    assert int(handle.masks["2.weight"].sum()) == int(before["2.weight"].sum()) == 30


def test_the_share_falls_along_a_cosine_until_the_stop() -> None:
    fall = registry.find("rigl", share=0.4, stop=0.75).drop
    for t in (0.0, 0.1, 0.375, 0.7, 0.75, 0.9):
        formula = 0.2 * (1 + math.cos(math.pi * t / 0.75)) if t < 0.75 else 0.0
        assert fall(t) == pytest.approx(formula)


def test_the_first_mask_does_not_look_at_weights() -> None:
    net = dense()
    before = {n: p.detach().abs().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "rigl", amount=0.5, steps=200)
    sparse = {n: m for n, m in handle.masks.items() if not bool(m.all())}
    assert sparse
    for name, mask in sparse.items():
        assert float(before[name][mask].min()) < float(before[name][~mask].median())
