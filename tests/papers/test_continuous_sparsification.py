"""Continuous sparsification against its rounds written out."""

import pytest
import torch
from gate_runs import attached, batches, gradient, layer, train
from torch import nn

import secateur as sec
from secateur.errors import ConfigError


def test_two_rounds_equal_the_same_written_out() -> None:
    beta_end, start, lam, data = 20.0, 0.1, 0.02, batches(8)
    options = {"initial": start, "sharpness": beta_end, "strength": lam, "rounds": 2}
    net, optimizer, handle = attached(("continuous_sparsification", options), steps=8)
    scale = 1 / torch.tensor(start).sigmoid()
    w = layer().weight.detach().clone()
    s = torch.full_like(w, start)
    suppressed = None
    for step, (x, y) in enumerate(data):
        beta = beta_end ** ((step % 4) / 4)
        m = (beta * s).sigmoid() * scale
        slope = beta * (beta * s).sigmoid() * (1 - (beta * s).sigmoid()) * scale
        dt = gradient(w * m, x, y)
        w, s = w - 0.1 * dt * m, s - 0.1 * (dt * w + lam) * slope
        if step == 0:
            early = w.clone()
        if step == 3:
            suppressed = s < 0
            w, s = early.clone(), (beta_end * s).clamp(max=start)
    train(net, optimizer, data)
    torch.testing.assert_close(net.weight.detach(), w)
    torch.testing.assert_close(handle.gated.aux["weight"]["s"].detach(), s)
    result = handle.finish()
    assert torch.equal(result.masks["weight"], s > 0)
    torch.testing.assert_close(net.weight.detach(), w * (s > 0) * scale)
    assert bool(suppressed.any()) and not bool(result.masks["weight"][suppressed].any())


def test_a_sharp_gate_is_the_step_function() -> None:
    _, _, handle = attached(("continuous_sparsification", {"sharpness": 1e6}), steps=5)
    handle.moment.step = 5
    s = torch.tensor([-0.1, -1e-3, 1e-3, 0.1])
    factor = handle.gated.gate.factor(s, {"s": s}, s, handle.moment)
    torch.testing.assert_close(factor, torch.tensor([0.0, 0.0, 2.0, 2.0]))


def test_statistics_of_batch_norms_go_back_with_the_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, "continuous_sparsification", steps=9, rounds=3, rewind=0.25)
    seen = []
    for _ in range(9):
        optimizer.zero_grad()
        net(torch.randn(4, 8) + 5).square().mean().backward()
        optimizer.step()
        seen.append({n: t.clone() for n, t in net.state_dict().items()})
    for end in (2, 5):  # the rewind is to after the second step
        for name, tensor in seen[1].items():
            assert torch.equal(seen[end][name], tensor), name
    assert int(net[1].num_batches_tracked) == 5


@pytest.mark.parametrize("options", [{"rounds": 3, "rewind": 0.5}, {"rounds": 0}, {"rewind": -0.1}])
def test_a_rewind_is_inside_the_first_round(options) -> None:
    net = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"rewind in \[0, 1/rounds\)"):
        sec.attach(net, optimizer, "continuous_sparsification", steps=9, **options)
