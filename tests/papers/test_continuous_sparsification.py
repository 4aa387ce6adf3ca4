"""Continuous sparsification against its rounds written out."""

import torch
from gate_runs import attached, batches, gradient, layer, train


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
