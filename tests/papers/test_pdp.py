"""PDP: the threshold, the boosted gradient, and the layers' shares."""

import torch
from gate_runs import attached, batches, gradient, layer, train
from torch import nn

import secateur as sec
from secateur.methods.during.pdp import ParameterFree


def test_the_gradient_at_the_threshold_is_thirteen() -> None:
    """m + 2 w^2 / tau m (1 - m) = 1/2 + 12.5 at |w| = t = 0.05, tau = 1e-4."""
    w = torch.tensor([0.06, 0.05, 0.05, 0.04], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, False, False])
    gate = ParameterFree(temperature=1e-4)
    (w * gate.factor(w, {}, mask, None)).sum().backward()
    m = torch.sigmoid((w.detach() ** 2 - 0.05**2) / 1e-4)
    expected = m + 2 * w.detach() ** 2 / 1e-4 * m * (1 - m)
    torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        w.grad[1:3], torch.full((2,), 13.0, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_a_run_equals_the_same_written_out() -> None:
    tau, data = 0.05, batches(10)
    net, optimizer, handle = attached(
        ("pdp", {"temperature": tau, "start": 0.2, "end": 0.8}), amount=0.5
    )
    w = layer().weight.detach().clone()
    for step, (x, y) in enumerate(data):
        gone = round(6 * min(max((step / 10 - 0.2) / 0.6, 0), 1))
        m = torch.ones_like(w)
        if gone:
            sizes = w.abs().flatten().sort().values
            t = (sizes[gone - 1] + sizes[gone]) / 2
            m = torch.sigmoid((w**2 - t**2) / tau)
        boost = m + (2 * w**2 / tau * m * (1 - m) if gone else 0)
        w = w - 0.1 * gradient(w * m, x, y) * boost
    train(net, optimizer, data)
    torch.testing.assert_close(net.weight.detach(), w, rtol=1e-4, atol=1e-6)
    assert handle.finish().masks.kept == 6
    threshold = w.abs().flatten().sort().values[5]
    torch.testing.assert_close(net.weight.detach(), w * (w.abs() > threshold), rtol=1e-4, atol=1e-6)


def test_shares_of_layers_are_those_of_one_ranking_after_the_warm_up() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 10, bias=False), nn.Linear(10, 4, bias=False))
    with torch.no_grad():
        net[1].weight.mul_(1.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    handle = sec.attach(net, optimizer, ("pdp", {"start": 0.2}), amount=0.8, steps=10)
    sizes = torch.cat([net[0].weight.abs().flatten(), net[1].weight.abs().flatten()]).detach()
    largest = set(sizes.argsort(descending=True)[:24].tolist())
    for _ in range(10):
        optimizer.zero_grad()
        net(torch.randn(3, 8)).square().mean().backward()
        optimizer.step()
    masks = handle.finish().masks
    kept = torch.cat([masks["0.weight"].flatten(), masks["1.weight"].flatten()])
    assert 0 < int(masks["0.weight"].sum()) < 16  # the uniform share is 16
    assert set(kept.nonzero().flatten().tolist()) == largest
