"""L1, L2, group lasso, slimming and scaling factors against closed forms and loops written out."""

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.sparse_structure_selection import ScalingFactors
from secateur.methods.during.ssl import GroupLasso


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40, 5),
    )


def batches(n: int):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 9, 9, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(n)
    ]


def train(net, optimizer, data, before=lambda: None, after=lambda: None) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        before()
        optimizer.step()
        after()


def sgd(net, lr: float = 0.1):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def weights(net) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.dim() > 1]


def same(a: nn.Module, b: nn.Module) -> None:
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key], msg=key)


def shrink_element(w: float, by: float) -> float:
    return w - by if w > by else w + by if w < -by else 0.0


@pytest.mark.parametrize(
    ("name", "add", "shrink"),
    [
        ("l1", lambda w: 0.02 * w.sign(), None),
        ("l2", lambda w: 0.02 * w, None),
        ("l1", None, lambda w: w.clone().apply_(lambda e: shrink_element(e, 0.1 * 0.02))),
        ("l2", None, lambda w: w / (1 + 0.1 * 0.02)),
    ],
)
def test_norms_equal_the_formula_at_every_step_and_the_smallest_go(name, add, shrink) -> None:
    net, plain = network(), network()
    optimizer = sgd(net)
    handle = sec.attach(
        net, optimizer, name, amount=0.8, strength=0.02, proximal=shrink is not None
    )
    train(net, optimizer, batches(4))

    @torch.no_grad()
    def before() -> None:
        for p in weights(plain) if add else []:
            p.grad += add(p)

    @torch.no_grad()
    def after() -> None:
        for p in weights(plain) if shrink else []:
            p.copy_(shrink(p))

    train(plain, sgd(plain), batches(4), before, after)
    same(net, plain)
    masks = handle.finish().masks
    assert masks.kept == round(0.2 * masks.total)
    size = {n: plain.get_parameter(n).abs() for n in masks}
    least = min(size[n][m].min() for n, m in masks.items())
    assert all(bool((size[n][~m] <= least + 1e-6).all()) for n, m in masks.items())


def test_what_the_proximal_step_made_zero_is_what_goes() -> None:
    net = network()
    optimizer = sgd(net)
    handle = sec.attach(net, optimizer, "l1", strength=0.05)
    train(net, optimizer, batches(10))
    before = copy.deepcopy(net.state_dict())
    masks = handle.finish().masks
    assert 0.05 < masks.sparsity < 0.95
    for n, mask in masks.items():
        assert torch.equal(mask, before[n] != 0)
    for name in ("l1", "ssl"):
        with pytest.raises(ConfigError, match="amount"):
            sec.attach(net, optimizer, name, proximal=False)
    with pytest.raises(ConfigError, match="negative"):
        sec.attach(net, optimizer, "l1", strength=-1.0)
    with pytest.raises(ConfigError, match="filter"):
        sec.attach(net, optimizer, "ssl", groups=["filters"])


def test_each_group_of_parameters_is_shrunk_by_its_own_rate() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    old = [p.detach().clone() for p in net.parameters()]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(net.parameters(), (0.5, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups)
    sec.attach(net, optimizer, "l2", strength=1.0, proximal=True)
    (net(torch.zeros(1, 3)) * 0).sum().backward()
    optimizer.step()
    for p, was, lr in zip(net.parameters(), old, (0.5, 0.1), strict=True):
        torch.testing.assert_close(p.detach(), was / (1 + lr))


def slices(weight, group: str) -> list[tuple]:
    out, into, high, wide = weight.shape
    whole = slice(None)
    return {
        "filter": [(n,) for n in range(out)],
        "channel": [(whole, c) for c in range(into)],
        "shape": [(whole, c, h, w) for c in range(into) for h in range(high) for w in range(wide)],
        "kernel": [(n, c) for n in range(out) for c in range(into)],
        "depth": [(whole,)],
    }[group]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("group", ["filter", "channel", "shape", "kernel", "depth"])
def test_the_group_lasso_equals_a_loop_over_groups(group, scaled) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2)
    weight[0] *= 0.1
    weight[:, 0] *= 0.1
    for proximal in (True, False):
        net = nn.Conv2d(3, 4, 2, bias=False)
        net.weight.data.copy_(weight)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        sec.attach(net, optimizer, GroupLasso(1.5, (group,), proximal, scaled))
        (net(torch.zeros(1, 3, 2, 2)) * 0).sum().backward()
        optimizer.step()
        expected, step = weight.clone(), 0.5 * 1.5
        for at in slices(weight, group):
            norm = float(weight[at].square().sum().sqrt())
            scale = step * (weight[at].numel() ** 0.5 if scaled else 1) / norm
            expected[at] = weight[at] * (max(0.0, 1 - scale) if proximal else 1 - scale)
        torch.testing.assert_close(net.weight.detach(), expected)
        some = group not in ("shape", "depth")
        assert not (proximal and some) or bool((net.weight == 0).any())


def test_the_golden_proximal_step() -> None:
    net = nn.Linear(3, 1, bias=False)
    net.weight.data.copy_(torch.tensor([[0.8, -0.3, 0.5]]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    sec.attach(net, optimizer, GroupLasso(0.4, ("filter",)))
    (net(torch.zeros(1, 3)) * 0).sum().backward()
    optimizer.step()
    expected = torch.tensor([[0.47675, -0.17878, 0.29797]])
    torch.testing.assert_close(net.weight.detach(), expected, atol=1e-5, rtol=0)


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(81, 16)
        self.branch = nn.Linear(16, 16, bias=False)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        return self.last(x + self.branch(x).relu())


def test_with_the_group_depth_a_whole_layer_beside_a_shortcut_goes() -> None:
    torch.manual_seed(0)
    net = Shortcut()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, "ssl", strength=5.0, groups=["depth"], ignore=["stem", "last"]
    )
    seen = []
    train(
        net, optimizer, batches(12), after=lambda: seen.append(int((net.branch.weight != 0).sum()))
    )
    assert set(seen) == {0, 256}  # all of it or nothing
    x = batches(1)[0][0]
    assert torch.equal(net(x), net.last(net.stem(x.flatten(1))))
    assert handle.finish().masks.empty() == ["branch.weight"]


def test_structures_that_the_group_lasso_made_zero_are_removed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(81, 20, bias=False), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, "ssl", strength=0.7, groups=["filter"], ignore=["3"])
    train(net, optimizer, batches(8))
    left = int(net[1].weight.any(1).sum())
    assert 0 < left < 20
    result = handle.finish(remove=True, example_inputs=batches(1)[0][0])
    assert result.verification.ok and result.model[1].out_features == left


def test_slimming_pulls_scales_and_removes_the_channels_of_the_smallest() -> None:
    net, plain = network(), network()
    optimizer = sgd(net)
    x = batches(1)[0][0]
    handle = sec.attach(
        net, optimizer, "network_slimming", amount=0.5, strength=0.01, example_inputs=x
    )
    train(net, optimizer, batches(6))

    def before() -> None:
        for norm in (plain[1], plain[4]):
            norm.weight.grad += 0.01 * norm.weight.detach().sign()

    train(plain, sgd(plain), batches(6), before)
    same(net, plain)
    gammas = torch.cat([plain[1].weight, plain[4].weight]).abs().detach()
    order = sorted(range(18), key=lambda i: float(gammas[i]))
    kept = sorted(order[9:])
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    assert result.model[1].num_features == sum(i < 8 for i in kept)
    assert result.model[4].num_features == sum(i >= 8 for i in kept)
    left = torch.cat([result.model[1].weight, result.model[4].weight]).abs().detach()
    torch.testing.assert_close(left, gammas[kept])
    torch.testing.assert_close(result.model.eval()(x), net.eval()(x), atol=1e-5, rtol=1e-4)


def test_slimming_leaves_a_channel_of_every_layer_and_what_has_no_norm() -> None:
    net = network()
    net[1].weight.data.fill_(1e-6)
    net[4] = nn.Identity()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x = batches(1)[0][0]
    handle = sec.attach(net, optimizer, "network_slimming", amount=0.99, example_inputs=x)
    train(net, optimizer, batches(1))
    masks = handle.finish().masks
    assert int(masks["1.weight"].sum()) == 1 and bool(masks["3.weight"].all())
    bare = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = sgd(bare)
    sec.attach(bare, optimizer, "network_slimming", example_inputs=torch.randn(2, 4))
    bare(torch.randn(2, 4)).sum().backward()
    with pytest.raises(ConfigError, match="no batch norm"):
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_factors_of_a_quadratic_end_at_its_soft_threshold(momentum) -> None:
    class At:
        state: dict = {}  # noqa: RUF012

    a = torch.tensor([2.0, 0.25, 0.75, -1.0])
    gate = ScalingFactors(lr=0.1, strength=0.5, momentum=momentum)
    moment = At()
    moment.state = {}
    scale = torch.ones(4)
    naive, speed = [1.0] * 4, [0.0] * 4
    for _ in range(400):
        scale -= gate.lr * (scale - a)  # the engine's step on (scale - a)^2 / 2
        gate.updated({"c": {"scale": scale}}, moment)
        for i in range(4):
            z = shrink_element(naive[i] - 0.1 * (naive[i] - float(a[i])), 0.1 * 0.5)
            speed[i] = z - naive[i] + momentum * speed[i]
            naive[i] = max(z + momentum * speed[i], 0.0)
        torch.testing.assert_close(scale, torch.tensor(naive), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scale, (a - 0.5).clamp(min=0), atol=1e-3, rtol=0)


def test_scaling_factors_are_trained_and_channels_at_zero_go() -> None:
    def start():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(81, 20), nn.ReLU(), nn.Linear(20, 5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        x = batches(1)[0][0]
        return net, optimizer, sec.attach(
            net, optimizer, "sparse_structure_selection", strength=0.45, example_inputs=x
        )  # fmt: skip

    net, optimizer, handle = start()
    plain = copy.deepcopy(net)
    (x, y), *_ = data = batches(6)
    scale = torch.ones(20, requires_grad=True)
    hidden = (x.flatten(1) @ (plain[1].weight * scale[:, None]).T + plain[1].bias * scale).relu()
    nn.functional.cross_entropy(plain[3](hidden), y).backward()
    train(net, optimizer, data[:1])
    z = 1 - 0.1 * scale.grad - 0.1 * 0.45
    torch.testing.assert_close(handle.gated.aux["1"]["scale"].detach(), z + 0.9 * (z - 1))
    torch.testing.assert_close(net[1].weight, plain[1].weight - 0.05 * plain[1].weight.grad)
    train(net, optimizer, data[1:])
    first = start()
    train(*first[:2], data[:3])
    again = start()
    for old, new in zip(first, again, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(*again[:2], data[3:])
    assert torch.equal(again[2].gated.aux["1"]["scale"], handle.gated.aux["1"]["scale"])
    seen = net(x).detach()
    left = int((handle.gated.aux["1"]["scale"] > 0).sum())
    assert 0 < left < 20
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok and result.model[1].out_features == left
    torch.testing.assert_close(result.model(x), seen, atol=1e-5, rtol=1e-4)


class Blocks(nn.Module):
    """Two residual blocks, one that ends in a norm and one in a layer with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.one = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.two = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU())
        self.weight, self.bias = (nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8)))

    def forward(self, x: Tensor, factors: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        x = self.stem(x)
        x = x + factors[0] * self.one(x)
        return self.head(x + factors[1] * (self.two(x) @ self.weight + self.bias))


def test_a_factor_of_a_block_stands_before_its_whole_branch() -> None:
    torch.manual_seed(0)
    net, x = Blocks(), torch.randn(5, 6)
    plain = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    handle = sec.attach(
        net, optimizer, "sparse_structure_selection", granularity="layer", example_inputs=x
    )
    for factors in ((0.5, 1.0), (1.0, 0.25), (0.5, 0.0)):
        handle.gated.aux["layers"]["scale"].data.copy_(torch.tensor(factors))
        torch.testing.assert_close(net.train()(x), plain.train()(x, factors))
    net.eval()
    expected = net(x)
    handle.finish()
    torch.testing.assert_close(net(x), expected)
    assert not bool(net.weight.any()) and bool(net.one[0].weight.all())
    expected = plain.eval()(x, (0.5, 0.0))
    torch.testing.assert_close(net(x), expected)


def test_a_strong_lasso_closes_blocks_that_do_not_help() -> None:
    torch.manual_seed(0)
    net = Blocks()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x = torch.randn(64, 6)
    handle = sec.attach(
        net, optimizer, ("sparse_structure_selection", {"strength": 5.0, "granularity": "layer"}),
        example_inputs=x,
    )  # fmt: skip
    train(net, optimizer, [(x, torch.arange(64) % 3)] * 8)
    masks = handle.finish().masks
    assert not any(bool(masks[n].any()) for n in ("one.0.weight", "two.1.weight", "weight"))
    torch.testing.assert_close(net(x), net.head(net.stem(x)))
