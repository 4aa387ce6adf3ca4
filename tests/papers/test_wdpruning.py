"""WDPruning: its steps written out naively, the budget against measured MACs, widths that train."""

import math

import pytest
import torch
from during_runs import convolutional, dense, pictures, train, vectors
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.measure.macs import macs


def attached(net, x, steps: int, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return optimizer, sec.attach(
        net, optimizer, "wdpruning", steps=steps, example_inputs=x, **options
    )


def test_masks_thresholds_and_multipliers_are_the_formulas_written_out() -> None:
    net, twin, data = dense(), dense(), vectors(12)
    optimizer, handle = attached(
        net, data[0][0], steps=12, macs=0.41, lr=0.3, hardness=0.5, initial=2.0, end=1.0
    )
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    saliency, threshold = torch.ones(30), torch.tensor(2.0)
    saliency.requires_grad_()
    threshold.requires_grad_()
    adam = torch.optim.Adam([saliency, threshold], lr=0.3)
    first = second = 0.0
    for x, y in data[:-1]:
        train(net, optimizer, [(x, y)])
        k = math.ceil(float(threshold.detach().sigmoid()) * 30)
        order = sorted(range(30), key=lambda i: (-float(saliency.detach()[i]), i))
        mask = torch.zeros(30)
        mask[order[:k]] = 1
        live = mask.requires_grad_()
        plain.zero_grad()
        nn.functional.cross_entropy(twin[2]((twin[0](x) * live).relu()), y).backward()
        plain.step()
        over = max(k / 30 - 0.41, 0.0)  # both layers cost as many MACs as there are neurons
        share = float(threshold.detach().sigmoid())
        pressure = (first + 2 * second * over) * (over > 0)
        saliency.grad = live.grad
        threshold.grad = (live.grad.sum() + pressure) * share * (1 - share)
        adam.step()
        k = math.ceil(float(threshold.detach().sigmoid()) * 30)
        over = max(k / 30 - 0.41, 0.0)
        first, second = first + 0.5 * over, second + 0.5 * over**2
        aux = handle.gated.aux["0"]
        torch.testing.assert_close(aux["saliency"], saliency)
        torch.testing.assert_close(aux["threshold"], threshold)
        assert float(handle.moment.state["first"]) == pytest.approx(first, rel=1e-5)
        assert float(handle.moment.state["second"]) == pytest.approx(second, rel=1e-5)
    torch.testing.assert_close(net[0].weight, twin[0].weight)
    assert first > 0 and 1 <= k < 30
    train(net, optimizer, data[-1:])  # the last step meets the budget
    assert int(handle.masks["0.weight"].any(1).sum()) == 12


@pytest.mark.parametrize("budget", [0.6, 0.35])
def test_the_budget_is_met_by_what_is_measured(budget) -> None:
    net, x = convolutional(), pictures(1)[0][0]
    optimizer, handle = attached(net, x, steps=20, macs=budget)
    train(net, optimizer, pictures(20))
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    share = macs(result.model, x)[0] / macs(convolutional(), x)[0]
    assert 0.7 * budget < share <= budget


def test_a_layer_that_the_loss_needs_keeps_more() -> None:
    """Eight inputs go through the first branch to the output, noise only through the second."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.needed, self.idle = nn.Linear(8, 16), nn.Linear(8, 16)
            self.out, self.nothing = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x):
            through = self.out(self.needed(x).relu())
            return through + 1e-3 * self.nothing(self.idle(x).relu())

    net = Branches()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    y = x @ torch.randn(8, 8, generator=generator)
    optimizer, handle = attached(net, x, steps=150, macs=0.5, hardness=0.02, lr=0.05, end=1.0)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    kept = {n: int(handle.masks[f"{n}.weight"].any(1).sum()) for n in ("needed", "idle")}
    assert kept["needed"] > kept["idle"] + 3, kept


def test_heads_and_neurons_of_a_transformer_go_and_that_is_proven() -> None:
    torch.manual_seed(0)
    net, x = sec.zoo.build("vit"), sec.zoo.example_inputs("vit")
    dense_macs = macs(net, x)[0]
    optimizer, handle = attached(net, x, steps=2, macs=0.5, end=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(*x), torch.tensor([0, 1])).backward()
        optimizer.step()
    before = net.eval()(*x)
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    torch.testing.assert_close(result.model.eval()(*x), before)
    assert 0.4 < macs(result.model, x)[0] / dense_macs <= 0.5
    assert result.model.head.in_features == 64
    assert all(b.attn.qkv.out_features % 48 == 0 for b in result.model.blocks)  # whole heads


def test_what_cannot_be_is_said() -> None:
    net, data = dense(), vectors(1)
    with pytest.raises(ConfigError, match="hardness=0"):
        attached(net, data[0][0], steps=2, hardness=0)
    optimizer, _ = attached(net, data[0][0], steps=1, macs=0.01)
    with pytest.raises(ConfigError, match="still needs"):
        train(net, optimizer, data)
