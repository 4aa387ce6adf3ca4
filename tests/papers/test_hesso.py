"""HESSO: five saliencies with loops, and units that fall to zero along a line."""

import pytest
import torch
from during_runs import convolutional, pictures, train

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.hesso import saliency


def attached(lr: float, **options):
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    handle = sec.attach(
        net, optimizer, "hesso", steps=10, example_inputs=pictures(1)[0][0], **options
    )
    return net, optimizer, handle


def test_saliencies_are_the_five_written_out() -> None:
    net, _, handle = attached(0.1, amount=0.5)
    x, y = pictures(1)[0]
    torch.nn.functional.cross_entropy(net(x), y).backward()
    scores = []
    for layer in (0, 3):
        for w, g in zip(net[layer].weight.detach(), net[layer].weight.grad, strict=True):
            w, g = w.flatten().tolist(), g.flatten().tolist()
            norm = sum(a * a for a in w) ** 0.5
            steep = sum(b * b for b in g) ** 0.5
            inner = sum(a * b for a, b in zip(w, g, strict=True))
            scores.append(
                [norm, norm / len(w), inner / (norm * steep) + 1, abs(inner), inner**2 / 2]
            )
    lengths = [sum(s[k] ** 2 for s in scores) ** 0.5 for k in range(5)]
    expected = [sum(s[k] / lengths[k] for k in range(5)) / 5 for s in scores]
    found = torch.cat(list(saliency(handle.moment).values()))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("periods", [1, 2])
def test_the_chosen_fall_linearly_and_are_zero_at_the_end_of_their_period(periods) -> None:
    net, optimizer, handle = attached(0.0, amount=0.5, start=0.2, end=0.8, periods=periods)
    first = {n: net.get_parameter(n).detach().clone() for n in ("0.weight", "1.bias", "3.weight")}
    net[1].bias.data.fill_(0.5)
    first["1.bias"] = net[1].bias.detach().clone()
    length = 6 // periods

    def look(step: int) -> None:
        done = min(max(step - 1, 0), 6)
        for name, start in first.items():
            ratio = (net.get_parameter(name).detach() / start).flatten(1 if start.dim() > 1 else 0)
            for value in ratio.reshape(len(start), -1)[:, 0].tolist():
                allowed = {1.0}
                for period in range(periods):
                    inside = min(max(done - period * length, 0), length)
                    allowed.add(1 - inside / length)
                assert min(abs(value - a) for a in allowed) < 1e-5, (name, step, value, allowed)
        if done == 6:
            assert handle.sparsity > 0

    train(net, optimizer, pictures(10), after=look)
    result = handle.finish(remove=True, example_inputs=pictures(1)[0][0])
    assert result.verification.ok
    assert result.model[0].out_channels + result.model[3].out_channels < 18


def test_what_faded_stays_zero_while_the_rest_trains() -> None:
    net, optimizer, handle = attached(0.1, amount=0.5, start=0.0, end=0.5)
    train(net, optimizer, pictures(5))
    gone = {n: ~m for n, m in handle.masks.items()}
    before = net[0].weight.detach().clone()
    train(net, optimizer, pictures(5, 7))
    assert any(bool(m.any()) for m in gone.values())
    for n, m in gone.items():
        assert not bool(net.get_parameter(n)[m].any())
    assert bool((net[0].weight.detach() != before)[~gone["0.weight"]].all())


def test_options_out_of_range_are_said() -> None:
    for wrong in ({"periods": 0}, {"start": 0.6, "end": 0.6}):
        with pytest.raises(ConfigError, match="hesso"):
            attached(0.1, **wrong)
