"""Taylor-FO: its gradients are those of factors really put behind the layers."""

import pytest
import torch
from during_runs import convolutional, pictures, train
from torch import Tensor, nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.taylor_fo import gate_gradients


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.after = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        gate = torch.ones(1, 6, 1, 1) if gate is None else gate.view(1, 6, 1, 1)
        x = (self.norm(self.stem(x)) * gate).relu()
        return self.head((x + self.after(self.conv(x)) * gate).relu().mean((2, 3)))


def test_the_gradient_of_a_gate_is_had_from_the_weights_alone() -> None:
    net, data = Residual(), pictures(1)
    with torch.no_grad():
        for norm in (net.norm, net.after):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "taylor_fo", steps=10, every=2, example_inputs=data[0][0])
    gate = torch.ones(6, requires_grad=True)
    nn.functional.cross_entropy(net(data[0][0], gate), data[0][1]).backward()
    (found,) = gate_gradients(handle.moment).values()
    torch.testing.assert_close(found, gate.grad)
    by_norms = sum(n.weight.detach() * n.weight.grad + n.bias.detach() * n.bias.grad
                   for n in (net.norm, net.after))  # fmt: skip
    torch.testing.assert_close(found, by_norms)


def test_the_lowest_averages_go_and_stay_gone() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    x = pictures(1)[0][0]
    handle = sec.attach(
        net, optimizer, "taylor_fo", amount=0.5, every=2, steps=8, end=1.0, example_inputs=x
    )
    sums, scores, gone = [0.0] * 18, None, set()

    def measure(step: int) -> None:
        nonlocal sums, scores, gone
        # the norm behind the first layer, the second layer itself
        parts = [(net[1].weight, net[1].bias), (net[3].weight, net[3].bias)]
        now = torch.cat([
            (w.detach() * w.grad).reshape(len(w), -1).sum(1) + b.detach() * b.grad for w, b in parts
        ]).tolist()  # fmt: skip
        sums = [s + g * g for s, g in zip(sums, now, strict=True)]
        if (step + 1) % 2:
            return
        mean = [s / 2 for s in sums]
        scores = mean if scores is None else [
            0.9 * a + 0.1 * b for a, b in zip(scores, mean, strict=True)
        ]  # fmt: skip
        sums = [0.0] * 18
        expected.append((0.5 * (step + 1) / 8, list(scores)))

    expected: list = []
    for batch in pictures(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
        measure(handle.steps)
        optimizer.step()
        kept = [*handle.masks["1.weight"].tolist(), *handle.masks["3.bias"].tolist()]
        now = {i for i, k in enumerate(kept) if not k}
        assert gone <= now
        if handle.steps % 2 == 0:
            amount, score = expected[-1]
            order = sorted(set(range(18)) - gone, key=lambda i: score[i])
            fresh = now - gone
            assert sorted(fresh) == sorted(order[: len(fresh)])
            # whole channels of 9 or 72 weights, as near as they come to the share of all weights
            left = sum(9 if i < 8 else 72 for i in range(18) if i not in now)
            assert abs(left - (1 - amount) * (8 * 9 + 10 * 72)) <= 36
        gone = now
    assert gone and handle.finish(remove=True, example_inputs=x).verification.ok


def test_options_out_of_range_are_said() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with pytest.raises(ConfigError, match="momentum"):
        sec.attach(net, optimizer, "taylor_fo", steps=8, momentum=1.0)


def test_the_last_look_reaches_the_whole_amount_and_nothing_goes_after_it() -> None:
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    handle = sec.attach(
        net, optimizer, "taylor_fo", amount=0.5, every=3, steps=20, end=0.55,
        example_inputs=pictures(1)[0][0],
    )  # fmt: skip
    history = []
    train(net, optimizer, pictures(20), after=lambda step: history.append(handle.sparsity))
    # looks are at steps 3, 6, 9, 12: the first at or behind 11 is the last that acts
    assert history[8] < history[11] == history[-1]
    left = sum(int(handle.masks[n].sum()) for n in ("0.weight", "3.weight"))
    assert abs(left - 0.5 * (72 + 720)) <= 36
