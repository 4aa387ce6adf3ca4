"""Drop and grow of whole channels: what comes back lives, and what cannot be scored says so."""

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import ConfigError

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(4))


def network(norms: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 16):
        layers += [nn.Conv2d(inputs, 16, 3), *([nn.BatchNorm2d(16)] if norms else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


def attached(method: str, net: nn.Module, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    handle = sec.attach(
        net, optimizer, method, amount=0.5, steps=60, every=10, share=0.5, granularity="channel",
        scope="uniform", example_inputs=X, **options,
    )  # fmt: skip
    return optimizer, handle


@pytest.mark.parametrize("norms", [True, False])
def test_channels_that_grow_are_alive(norms) -> None:
    net = network(norms)
    optimizer, handle = attached("set", net, per_sign=False)
    convolutions = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    ever = {n: torch.zeros(16, dtype=torch.bool) for n in convolutions}
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
        for n in convolutions:
            own = handle.masks[f"{n}.weight"].flatten(1)
            assert int(own.any(1).sum()) == 8
            weight = net.get_submodule(n).weight
            assert bool((weight.flatten(1) != 0).any(1)[own.any(1)].all())
            assert not bool(weight.flatten(1)[~own].any())
            ever[n] |= own.any(1)
    assert all(int(e.sum()) > 8 for e in ever.values())
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), Y).backward()
    for n in convolutions:
        own = handle.masks[f"{n}.weight"].flatten(1).any(1)
        assert bool((net.get_submodule(n).weight.grad.flatten(1) != 0).any(1)[own].sum() > 4)
    for name, norm in net.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert torch.equal(norm.weight != 0, handle.masks[f"{name}.weight"])


def test_what_grows_starts_as_a_fresh_layer_does() -> None:
    net = network(norms=True)
    optimizer, handle = attached("set", net, per_sign=False)
    for step in range(10):
        before = handle.masks
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
        assert (handle.masks == before) == (step < 9)
    new = (handle.masks["0.weight"] & ~before["0.weight"]).flatten(1).any(1)
    assert int(new.sum()) > 0
    assert bool((net[1].weight[new] == 1).all()) and not bool(net[1].bias[new].any())
    assert bool((net[1].running_var[new] == 1).all()) and not bool(net[1].running_mean[new].any())
    grown = net[0].weight.detach()[new]
    assert float(grown.abs().max()) <= 27**-0.5 and float(grown.std()) > 0.2 * 27**-0.5
    assert not bool(optimizer.state[net[0].weight]["momentum_buffer"][new].any())


@pytest.mark.parametrize("method", ["rigl", "granet"])
def test_growth_by_gradients_of_masked_channels_is_refused(method) -> None:
    with pytest.raises(ConfigError, match=r"zero in all that makes it.*granularity='element'"):
        attached(method, network(norms=True))
