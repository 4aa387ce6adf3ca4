"""GraNet: the pruning schedule and the exchange, each against its formula."""

import math

import pytest
import torch
from torch import nn

import secateur as sec


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_it_prunes_along_the_cubic_and_exchanges_after_each_pruning(initial) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    options = {"initial": initial, "every": 2, "end": 0.75}
    handle = sec.attach(net, optimizer, ("granet", options), amount=0.9, steps=20)
    assert handle.sparsity == pytest.approx(initial, abs=2e-3)
    x, y = torch.randn(30, 20), torch.randint(0, 10, (30,))
    exchanged = 0
    for step in range(1, 21):
        old = handle.masks
        weights = {n: net.get_parameter(n).detach().clone() for n in old}
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        gradients = {n: net.get_parameter(n).grad.abs() for n in old}
        optimizer.step()
        new = handle.masks
        if step % 2:
            assert new == old
            continue
        t = min(step / 20 / 0.75, 1.0)
        wanted = 0.9 + (initial - 0.9) * (1 - t) ** 3
        assert new.kept == round((1 - wanted) * new.total)
        if step == 20:
            assert new == old
            continue
        for n in new:
            # Naive: of what stays after pruning (as many as are kept now) the smallest go,
            # and the largest gradients of all that is then absent come.
            kept = int(new[n].sum())
            out = int(0.25 * (1 + math.cos(math.pi * step / 20)) * kept)
            order = sorted(
                old[n].flatten().nonzero().flatten().tolist(),
                key=lambda i: -abs(weights[n].flatten()[i].item()),
            )
            stay = set(order[: kept - out])
            rest = [i for i in range(old[n].numel()) if i not in stay]
            rest.sort(key=lambda i: -gradients[n].flatten()[i].item())
            assert set(new[n].flatten().nonzero().flatten().tolist()) == stay | set(rest[:out])
            grown = new[n] & ~old[n]
            exchanged += int(grown.sum())
            assert not bool(net.get_parameter(n)[grown].any())
    assert exchanged > 0
    assert handle.finish().masks.kept == round(0.1 * 900)


def test_a_schedule_that_ends_between_two_looks_still_reaches_its_target() -> None:
    torch.manual_seed(0)
    net = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"every": 4, "end": 0.6}
    handle = sec.attach(net, optimizer, ("gradual_magnitude", options), amount=0.9, steps=10)
    for _ in range(10):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().mean().backward()
        optimizer.step()
    assert handle.finish().masks.kept == 10


def test_a_sparse_start_is_random_along_erk() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = []
    for method in (("granet", {"initial": 0.6}), ("random", {"amount": 0.6, "scope": "erk"})):
        handle = sec.attach(net, optimizer, method, steps=2000)
        found.append(handle.masks.densities())
        handle.detach()
    assert found[0] == pytest.approx(found[1])
    assert found[0]["2.weight"] > 1.5 * found[0]["0.weight"]
