"""Movement pruning, hard and soft, against sums written out."""

import pytest
import torch
from gate_runs import attached, batches, gradient, layer, train


def test_scores_are_the_negative_sum_of_gradient_times_weight_masked_ones_too() -> None:
    options = {"inner_optimizer": "sgd", "lr": 0.5, "start": 0.0, "end": 1.0}
    data = batches(10)
    net, optimizer, handle = attached(("movement", options), amount=0.5)
    w = layer().weight.detach().clone()
    score, mask = torch.zeros_like(w), torch.ones_like(w)
    for step, (x, y) in enumerate(data, 1):
        dt = gradient(w * mask, x, y)
        score, w = score - 0.5 * dt * w, w - 0.1 * dt * mask
        gone = 0.5 * (1 - (1 - step / 10) ** 3)
        keep = round(12 * (1 - gone))
        mask = torch.zeros(12)
        mask[sorted(range(12), key=lambda i: (-float(score.flatten()[i]), i))[:keep]] = 1
        mask = mask.view_as(w)
        train(net, optimizer, [(x, y)])
        torch.testing.assert_close(handle.gated.aux["weight"]["score"].detach(), score)
        assert torch.equal(handle.masks["weight"].float(), mask)
    torch.testing.assert_close(net.weight.detach(), w)
    assert handle.finish().masks.kept == 6
    torch.testing.assert_close(net.weight.detach(), w * mask)


def test_a_weight_that_moves_away_from_zero_gains() -> None:
    net, optimizer, handle = attached(("movement", {"start": 0.5, "end": 1.0}), amount=0.5)
    before = net.weight.detach().abs()
    train(net, optimizer, batches(1))
    moved = net.weight.detach().abs() - before
    score = handle.gated.aux["weight"]["score"].detach()
    assert torch.equal(score > 0, moved > 0)


def test_soft_movement_pushes_by_the_mean_sigmoid_and_keeps_what_is_above_the_threshold() -> None:
    options = {"threshold": 0.45, "strength": 4.0, "inner_optimizer": "sgd", "lr": 0.5}
    data = batches(10)
    net, optimizer, handle = attached(("soft_movement", {**options, "start": 0.0, "end": 1.0}))
    w = layer().weight.detach().clone()
    score, mask = torch.zeros_like(w), torch.ones_like(w)
    for step, (x, y) in enumerate(data):
        dt = gradient(w * mask, x, y)
        share = 1 - (1 - step / 10) ** 3
        odds = score.sigmoid()
        ds = dt * w + 4.0 * share * odds * (1 - odds) / 12
        score, w = score - 0.5 * ds, w - 0.1 * dt * mask
        tau = 0.45 * (1 - (1 - (step + 1) / 10) ** 3)
        mask = (score.sigmoid() > tau).float()
        mask.view(-1)[score.argmax()] = 1
    train(net, optimizer, data)
    torch.testing.assert_close(handle.gated.aux["weight"]["score"].detach(), score)
    result = handle.finish()
    assert torch.equal(result.masks["weight"].float(), mask)
    assert 0 < result.masks.sparsity < 1
    torch.testing.assert_close(net.weight.detach(), w * mask)


def test_soft_movement_needs_the_length_of_the_run() -> None:
    from secateur.errors import ConfigError

    with pytest.raises(ConfigError, match="steps="):
        attached("soft_movement", steps=None)
