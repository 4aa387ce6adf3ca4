"""Biprop, Early-Bird and EarlyBERT against their formulas."""

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.before.biprop import gain
from secateur.methods.during.early_bird import drawn, kept_channels


def test_the_gain_is_the_least_squares_scale_of_the_signs() -> None:
    torch.manual_seed(0)
    weight, mask = torch.randn(6, 9), torch.rand(6, 9) > 0.4
    sign = (weight.sign() * mask).flatten()[:, None]
    best = torch.linalg.lstsq(sign, (weight * mask).flatten()[:, None]).solution
    torch.testing.assert_close(gain(weight, mask), best[0, 0])


def biprop(steps: int):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.randn(64, 12)
    y = x[:, :4].argmax(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "biprop", amount=0.5, steps=steps)
    return net, optimizer, handle, x, y


def test_scores_get_the_gradient_of_the_paper_and_weights_get_none() -> None:
    net, _, handle, x, y = biprop(1)
    weight = net[0].weight.detach().clone()
    mask = handle.masks["0.weight"]
    binary = (gain(weight, mask) * weight.sign() * mask).requires_grad_()
    second = net[2].weight.detach()
    other = gain(second, handle.masks["2.weight"]) * second.sign() * handle.masks["2.weight"]
    hidden = nn.functional.linear(x, binary, net[0].bias).relu()
    loss = nn.functional.cross_entropy(nn.functional.linear(hidden, other, net[2].bias), y)
    (g,) = torch.autograd.grad(loss, binary)
    ours = nn.functional.cross_entropy(net(x), y)
    torch.testing.assert_close(ours, loss)
    ours.backward()
    score = handle.gated.aux["0.weight"]["score"]
    torch.testing.assert_close(score.grad, g * weight * score.detach().sign())


def test_a_ticket_of_signs_learns_and_is_one_number_a_layer() -> None:
    net, optimizer, handle, x, y = biprop(60)
    first = float((net(x).argmax(1) == y).float().mean())
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    last = float((net(x).argmax(1) == y).float().mean())
    result = handle.finish()
    assert float((net(x).argmax(1) == y).float().mean()) == pytest.approx(last)
    assert last > first + 0.2
    assert result.masks.sparsity == pytest.approx(0.5, abs=0.01)
    for name, mask in result.masks.items():
        weight = net.get_parameter(name).detach()
        assert len(weight[mask].abs().unique()) == 1
        assert not bool(weight[~mask].any())


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3),
    )  # fmt: skip


def bird(scales, every: int = 1, **options):
    """Attach, and let each step leave the scales of the norms as given; where it was drawn."""
    torch.manual_seed(0)
    net = normed()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    handle = sec.attach(
        net, optimizer, "early_bird", amount=0.5, every=every,
        example_inputs=torch.randn(2, 1, 6, 6), **options,
    )  # fmt: skip
    found = []
    for scale in scales:
        optimizer.zero_grad()
        net(torch.randn(4, 1, 6, 6)).sum().backward()
        with torch.no_grad():
            net[1].weight.copy_(scale[:8])
            net[4].weight.copy_(scale[8:])
        optimizer.step()
        found.append(drawn(handle))
    return net, handle, found


def test_a_ranking_that_stays_is_drawn_as_soon_as_five_masks_are_there() -> None:
    scale = torch.rand(16) + 0.1
    net, handle, found = bird([scale * (1 + k) for k in range(7)])
    assert found == [None, None, None, None, 5, 5, 5]
    assert kept_channels(net, 0.5).tolist() == (scale.argsort().argsort() >= 8).tolist()
    result = handle.finish(remove=True, example_inputs=torch.randn(2, 1, 6, 6))
    assert result.model[0].out_channels + result.model[3].out_channels == 8
    assert result.verification.ok


def test_a_ranking_that_moves_is_not_drawn_before_it_rests() -> None:
    torch.manual_seed(1)
    moving = [torch.rand(16) + 0.1 for _ in range(5)]
    rest = torch.rand(16) + 0.1
    masks = [set(s.argsort()[8:].tolist()) for s in [*moving, *[rest] * 6]]
    distances = [
        max(len(masks[k] ^ masks[j]) / 16 for j in range(k - 4, k)) for k in range(4, len(masks))
    ]
    expected = next(k for k, d in enumerate(distances) if d <= 0.1) + 5
    _, handle, found = bird([*moving, *[rest] * 6])
    assert found[expected - 2] is None
    assert found[-1] == expected == 10
    assert float(handle.moment.state["distance"]) == distances[5]


def test_early_bird_looks_every_so_often_and_says_what_cannot_be() -> None:
    scale = torch.rand(16) + 0.1
    assert bird([scale] * 10, every=2)[2][-1] == 10
    with pytest.raises(ConfigError, match="at least 2"):
        bird([], window=1)


def test_early_bert_is_the_loss_with_coefficients_written_out() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    twin.load_state_dict(net.state_dict())
    c = torch.ones(8, requires_grad=True)
    x, y = torch.randn(32, 6), torch.randint(0, 2, (32,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plain = torch.optim.SGD([*twin.parameters(), c], lr=0.1)
    handle = sec.attach(
        net, optimizer, "early_bert", amount=0.5, steps=6, example_inputs=x, strength=0.01
    )
    for step in range(6):
        torch.testing.assert_close(net(x), twin[2]((twin[0](x) * c).relu()))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        plain.zero_grad()
        loss = nn.functional.cross_entropy(twin[2]((twin[0](x) * c).relu()), y)
        (loss + 0.01 * c.abs().sum()).backward()
        plain.step()
        assert bool(handle.sparsity) == (step == 5)
    torch.testing.assert_close(handle.gated.aux["0"]["c"], c)
    result = handle.finish(remove=True, example_inputs=x)
    keep = c.detach().abs().argsort()[4:].sort().values
    assert result.model[0].out_features == 4
    torch.testing.assert_close(
        result.model[0].weight, (twin[0].weight * c[:, None])[keep], rtol=1e-4, atol=1e-6
    )


def test_early_bert_takes_heads_and_neurons_of_a_transformer_and_not_its_width() -> None:
    torch.manual_seed(0)
    net = sec.zoo.build("vit")
    x = sec.zoo.example_inputs("vit")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    handle = sec.attach(net, optimizer, "early_bert", amount=0.5, steps=1, example_inputs=x)
    nn.functional.cross_entropy(net(*x), torch.tensor([0, 1])).backward()
    optimizer.step()
    small = handle.finish(remove=True, example_inputs=x)
    assert small.verification.ok
    for block in small.model.blocks:
        assert block.attn.qkv.out_features == 3 * 32
        assert block.mlp[0].out_features == 64
    assert small.model.head.in_features == 64


def test_a_coefficient_counts_by_its_size_whatever_its_sign() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x = torch.randn(5, 3)
    handle = sec.attach(net, optimizer, "early_bert", amount=0.5, steps=1, example_inputs=x)
    handle.gated.aux["0"]["c"].data.copy_(torch.tensor([0.1, -0.9, 0.5, -0.2]))
    net(x).sum().backward()
    optimizer.step()
    kept = handle.finish().masks["0.weight"].any(1)
    assert kept.tolist() == [False, True, True, False]
