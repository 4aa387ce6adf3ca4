"""AutoPrune: the custom gradient, the two streams of data, and the return of weights."""

import copy
import itertools

import pytest
import torch
from gate_runs import attached, batches, gradient, layer, train
from torch import nn

import secateur as sec
from secateur.errors import ConfigError, DataError
from secateur.methods.during.autoprune import Gated

SLOPES = {
    "linear": torch.ones_like,
    "leaky_relu": lambda m: torch.where(m > 0, 1.0, 0.1),
    "softplus": torch.sigmoid,
}


@pytest.mark.parametrize("estimator", SLOPES)
def test_the_gradient_is_the_formula_whatever_the_size_of_the_weight(estimator) -> None:
    w = torch.tensor([2.0, -0.1, 0.0, 2.0, -0.1], requires_grad=True)
    m = torch.tensor([0.3, 0.3, 0.3, -0.3, -0.3], requires_grad=True)
    g = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5])
    Gated.apply(w, m, m > 0, estimator).backward(g)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    torch.testing.assert_close(m.grad, g * sign * SLOPES[estimator](m.detach()))
    torch.testing.assert_close(w.grad, g * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))


def test_a_bilevel_run_equals_the_same_written_out() -> None:
    options = {"inner_optimizer": "sgd", "lr": 2.0, "strength": 0.02, "initial": 0.1}
    data, held = batches(9), batches(4, start=1)
    net, optimizer, handle = attached(("autoprune", options), steps=9, validation=held)
    optimizer.param_groups[0]["weight_decay"] = 0.05
    w = layer().weight.detach().clone()
    m = torch.full_like(w, 0.1)
    returned = False
    for step, (x, y) in enumerate(data):
        h = (m > 0).float()
        dval = gradient(w * h, *held[step % 4])
        sign = torch.where(w < 0, -1.0, 1.0)
        new = m - 2.0 * (dval * sign + 0.02) * m.sigmoid()
        w = w - 0.1 * (gradient(w * h, x, y) * h + 0.05 * w)
        returned |= bool(((m <= 0) & (new > 0)).any())
        m = new
    train(net, optimizer, data)
    torch.testing.assert_close(net.weight.detach(), w)
    torch.testing.assert_close(handle.gated.aux["weight"]["m"].detach(), m)
    assert returned
    result = handle.finish()
    assert torch.equal(result.masks["weight"], m > 0)


def test_an_amount_follows_the_cubic_schedule_and_the_choice_then_stands_still() -> None:
    """Written out: how many stay, which, and what the weights and auxiliaries do meanwhile."""
    options = {"amount": 0.75, "inner_optimizer": "sgd", "lr": 2.0, "end": 0.5, "settled": 0.75}
    data, held = batches(20), batches(4, start=1)
    net, optimizer, handle = attached(("autoprune", options), steps=20, validation=held)
    w = layer().weight.detach().clone()
    m = torch.full_like(w, 0.3)
    kept = torch.ones_like(w, dtype=torch.bool)
    chosen = []
    for step, (x, y) in enumerate(data):
        train(net, optimizer, [(x, y)])
        if step / 20 < 0.75:
            dval = gradient(w * kept, *held[step % 4])
            new = m - 2.0 * dval * torch.where(w < 0, -1.0, 1.0) * m.sigmoid()
        w = w - 0.1 * gradient(w * kept, x, y) * kept
        m = new
        gone = 0.75 * (1 - (1 - min((step + 1) / 20 / 0.5, 1.0)) ** 3)
        stay = round(12 * (1 - gone))
        kept = torch.zeros(12, dtype=torch.bool)
        kept[m.flatten().argsort(descending=True)[:stay]] = True
        kept = kept.view_as(m)
        assert torch.equal(handle.masks["weight"], kept), step
        torch.testing.assert_close(handle.gated.aux["weight"]["m"].detach(), m)
        torch.testing.assert_close(net.weight.detach(), w)
        chosen.append(kept)
    assert [int(k.sum()) for k in chosen[9:]] == [3] * 11
    assert all(torch.equal(k, chosen[14]) for k in chosen[14:])
    assert any(bool((b & ~a).any()) for a, b in itertools.pairwise(chosen))
    result = handle.finish()
    assert result.masks.sparsity == 0.75
    torch.testing.assert_close(net.weight.detach(), w * kept)
    assert torch.equal(net.weight != 0, kept)


def test_training_batches_never_touch_the_auxiliaries() -> None:
    found = []
    for scale in (1.0, 100.0):
        held = batches(1, start=1)
        net, optimizer, handle = attached("autoprune", validation=held)
        train(net, optimizer, [(x * scale, y) for x, y in batches(1)])
        found.append(handle.gated.aux["weight"]["m"].detach().clone())
    assert torch.equal(*found)


def test_a_weight_that_does_not_count_stands_still_in_spite_of_momentum() -> None:
    net, optimizer, handle = attached("autoprune", momentum=0.9)
    train(net, optimizer, batches(2))
    with torch.no_grad():
        handle.gated.aux["weight"]["m"][0] = -5.0
    train(net, optimizer, batches(1))
    before = net.weight[0].detach().clone()
    train(net, optimizer, batches(2))
    assert torch.equal(net.weight[0].detach(), before)


def test_weights_that_were_pruned_come_back_and_stay() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.5)
    x = torch.randn(64, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    options = {"strength": 1.0, "initial": 0.05, "lr": 0.05}

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()

    handle = sec.attach(net, optimizer, ("autoprune", options), loss=loss)
    kept = []
    for step in range(120):  # first nothing is worth its charge, then the first input matters
        target = x[:, :1] * (0.0 if step < 30 else 5.0)
        optimizer.zero_grad()
        loss(net(x), target).backward()
        optimizer.step()
        kept.append(bool(handle.masks["weight"][0, 0]))
    assert kept[0] and not kept[29] and all(kept[-20:])


def test_a_resumed_run_finds_its_place_in_the_validation_data() -> None:
    data, held = batches(7), batches(3, start=1)
    net, optimizer, handle = attached("autoprune", validation=held)
    train(net, optimizer, data)
    first, a, b = attached("autoprune", validation=held)
    train(first, a, data[:4])
    saved = copy.deepcopy((first.state_dict(), a.state_dict(), b.state_dict()))
    again, c, d = attached("autoprune", validation=held)
    for part, state in zip((again, c, d), saved, strict=True):
        part.load_state_dict(state)
    train(again, c, data[4:])
    assert torch.equal(again.weight, net.weight)
    assert torch.equal(d.gated.aux["weight"]["m"], handle.gated.aux["weight"]["m"])


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="softplus"):
        attached(("autoprune", {"estimator": "softpluss"}))
    with pytest.raises(ConfigError, match=r"end=0\.8, settled=0.5"):
        attached(("autoprune", {"amount": 0.9, "end": 0.8, "settled": 0.5}))
    with pytest.raises(ConfigError, match="no auxiliaries"):
        attached("random", validation=batches(1))
    net, optimizer, _ = attached("autoprune", validation=[])
    with pytest.raises(DataError, match="no batch"):
        train(net, optimizer, batches(1))


def test_validation_batches_leave_the_statistics_of_norms_alone() -> None:
    seen = []
    for shift in (0.0, 50.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        validation = [(x + shift, y) for x, y in batches(3, 7)]
        handle = sec.attach(net, optimizer, "autoprune", lr=0.0, validation=validation)
        train(net, optimizer, batches(3))
        handle.detach()
        seen.append((net[1].running_mean.clone(), net[1].num_batches_tracked.clone()))
        assert net[1].training
    assert torch.equal(seen[0][0], seen[1][0]) and int(seen[1][1]) == 3
