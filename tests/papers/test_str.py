"""STR against its update rule written out."""

import torch
from gate_runs import attached, batches, gradient, layer, train


def test_weights_and_threshold_follow_the_papers_gradients() -> None:
    data = batches(6)
    net, optimizer, handle = attached(("str", {"initial": -1.0, "decay": 0.3}))
    w, s = layer().weight.detach().clone(), torch.tensor(-1.0)
    for x, y in data:
        g = torch.sigmoid(s)
        soft = w.sign() * (w.abs() - g).clamp(min=0)
        active = (w.abs() > g).float()
        dt = gradient(soft, x, y)
        ds = -g * (1 - g) * (dt * w.sign() * active).sum() + 0.3 * s
        w, s = w - 0.1 * dt * active, s - 0.1 * ds
    train(net, optimizer, data)
    torch.testing.assert_close(net.weight.detach(), w)
    torch.testing.assert_close(handle.gated.aux["weight"]["threshold"].detach(), s)
    expected = w.sign() * (w.abs() - s.sigmoid()).clamp(min=0)
    result = handle.finish()
    torch.testing.assert_close(net.weight.detach(), expected)
    assert torch.equal(result.masks["weight"], expected != 0)
    assert 0 < result.masks.sparsity < 1


def test_the_threshold_follows_the_optimizers_learning_rate() -> None:
    net, optimizer, handle = attached(("str", {"decay": 0.5}))
    before = handle.gated.aux["weight"]["threshold"].item()
    optimizer.param_groups[0]["lr"] = 0.0
    train(net, optimizer, batches(2))
    assert handle.gated.aux["weight"]["threshold"].item() == before
