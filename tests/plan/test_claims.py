"""What a plan claims to be exact is compared with zeroing written out; branches, draws, orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur.plan import Plan


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def linear(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o)


class Net(nn.Module):
    """``forward`` is given."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.inner = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self, x)


def zeroed(net: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    with torch.no_grad(), sec.masked(net, plan):
        return net(x)


def claim_holds(net: nn.Module, x: Tensor, keep: dict[str, Tensor] | None = None) -> Plan:
    """The plan, if what it claims is so: exact ones equal zeroing, all are proven."""
    graph = sec.trace(net.eval(), x)
    if keep is None:
        plan = sec.plan(graph, amount=0.5, criterion="random", kinds="all")
    else:
        plan = Plan.of(graph, keep).prepared()
    small = plan.apply(net)
    proof = plan.verify(net, small)
    assert proof.ok and proof.proven, proof
    if plan.exact:
        with torch.no_grad():
            torch.testing.assert_close(small(x), zeroed(net, plan, x), rtol=1e-4, atol=1e-5)
    return plan


# Widths chosen anew in each group, read in another order than they are stored.


def shuffled(net: Net, x: Tensor) -> Tensor:
    y = net.d(net.a(x))
    b, c, h, w = y.shape
    return net.h(y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w))


def test_a_channel_shuffle_keeps_the_same_channels_in_every_group():
    net = Net(
        shuffled, a=nn.Conv2d(3, 12, 3), d=nn.Conv2d(12, 12, 3, groups=3), h=nn.Conv2d(12, 4, 1)
    )
    graph = sec.trace(net.eval(), torch.randn(2, 3, 7, 7))
    for seed in range(6):
        plan = sec.plan(graph, amount=0.5, criterion="random", fibred=True, kinds="all", seed=seed)
        assert plan.verify().ok, seed


def dims_first(net: Net, x: Tensor) -> Tensor:
    q, k, v = (m(x).unflatten(-1, (4, 6)).transpose(1, 2) for m in (net.q, net.k, net.v))
    y = F.scaled_dot_product_attention(q, k, v)
    return net.o(y.permute(0, 2, 3, 1).flatten(2))


def test_heads_that_are_joined_dimension_first_are_right_too():
    net = Net(
        dims_first, q=linear(5, 24), k=linear(5, 24), v=linear(5, 24), o=linear(24, 3)
    )  # fmt: skip
    graph = sec.trace(net.eval(), torch.randn(2, 7, 5))
    for seed in range(6):
        how = {"criterion": "random", "kinds": "head_dim", "fibred": True, "seed": seed}
        assert sec.plan(graph, amount=0.5, **how).verify().ok, seed


# Positions that are named by number.


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.index_fill(1, torch.tensor([0]), 0.0),
        lambda y: y.index_fill(1, torch.tensor([1, 4]), 2.0),
        lambda y: y.index_add(1, torch.tensor([0, 3]), torch.ones(len(y), 2)),
        lambda y: y.index_copy(1, torch.tensor([0, 3]), torch.ones(len(y), 2)),
    ],
)
def test_an_axis_that_is_indexed_by_number_stays(write):
    net = Net(lambda m, x: m.h(write(m.a(x))), a=linear(5, 8), h=linear(8, 3))
    graph = sec.trace(net.eval(), torch.randn(3, 5))
    assert not graph.free and "scattered" in str(graph)


# A forward that asks for its sizes.


def joins_if_equal(net: Net, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    y = net.b(x)
    if x.shape == y.shape:
        y = y + x
    return net.h(y)


def bends_if_wide(net: Net, x: Tensor) -> Tensor:
    y = net.b(net.a(x).relu())
    if y.shape[1] > 8:
        y = y.relu()
    return net.h(y)


@pytest.mark.parametrize("forward", [joins_if_equal, bends_if_wide])
def test_a_width_that_would_lead_to_another_branch_is_given_back(forward):
    net = Net(forward, a=linear(5, 8), b=linear(8, 16), h=linear(16, 4))
    x = torch.randn(3, 5)
    plan = sec.plan(sec.trace(net.eval(), x), amount=0.5, overrides={"a": 0.0})
    assert "b" not in plan.keep and "another branch" in " ".join(plan.notes)
    result = sec.prune(net, x, amount=0.25, measure=False, progress=False)  # 6 and 12
    assert result.verification.ok and result.plan.removed == {"a": 2, "b": 4}


def skips_what_is_not_needed(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    groups = y.shape[1] // 8
    if groups > 1:  # with one group it would be the same
        y = y.view(len(y), groups, 8).flatten(1)
    return net.h(y)


def test_another_branch_that_gives_the_same_is_taken():
    net = Net(skips_what_is_not_needed, a=linear(5, 16), h=linear(16, 3))
    graph = sec.trace(net.eval(), torch.randn(3, 5))
    name = next(n for n, c in graph.free.items() if c.size == 2)
    plan = Plan.of(graph, {name: torch.tensor([True, False])}).prepared()
    assert plan.keep and not plan.notes and plan.verify().ok


# Zero that is not zero.


def grouped(net: Net, x: Tensor) -> Tensor:
    q, k, v = (m(x).unflatten(-1, (-1, 4)).transpose(1, 2) for m in (net.q, net.k, net.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return net.h(y.sum(1))


def test_a_query_that_is_zero_gives_the_mean_of_the_values():
    net = Net(grouped, q=linear(5, 16), k=linear(5, 8), v=linear(5, 8), h=linear(4, 3))
    x = torch.randn(2, 6, 5)
    plan = claim_holds(net, x, {"q:query": torch.tensor([False, True])})
    assert not plan.exact


@pytest.mark.parametrize(
    ("layer", "read", "exact"),
    [
        (nn.Conv2d(3, 8, 3), lambda y: F.pad(y, (1, 1, 1, 1), value=1.0).sum(1), False),
        (nn.Conv2d(3, 8, 3), lambda y: F.pad(y, (1, 1, 1, 1)).sum(1), True),
        (nn.Conv2d(3, 8, 3), lambda y: F.hardtanh(y, 0.5, 1.0).sum(1), False),
        (nn.Conv2d(3, 8, 3), lambda y: F.hardtanh(y).sum(1), True),
        (nn.Conv2d(3, 8, 3), lambda y: (y + torch.empty_like(y).fill_(2.0)).sum(1), False),
        (nn.Conv2d(3, 8, 3), lambda y: (y + torch.empty_like(y).normal_()).sum(1), False),
        (nn.Conv2d(3, 8, 3), lambda y: (y + torch.empty_like(y).uniform_()).sum(1), False),
        (nn.Conv2d(3, 8, 3), lambda y: (y + torch.empty_like(y).bernoulli_(0.7)).sum(1), False),
    ],
)
def test_what_is_not_zero_after_masking_is_not_called_exact(layer, read, exact):
    net = Net(lambda m, x: read(m.a(x)), a=layer)
    plan = claim_holds(net, torch.randn(2, 3, 6, 6))
    assert plan.removed == {"a": 4} and plan.exact is exact


@pytest.mark.parametrize("groups", [2, 6])
def test_a_group_norm_has_its_statistics_over_what_follows_the_channels(groups):
    net = Net(
        lambda m, x: m.h(m.n(m.a(x))), a=linear(5, 12), n=nn.GroupNorm(groups, 6), h=linear(12, 4)
    )
    assert not claim_holds(net, torch.randn(3, 6, 5)).exact


# What cannot be read, and what is long.


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y if not torch.equal(y, y + 1) else y * 2,
        lambda y: y if torch.allclose(y, y) else y * 2,
        lambda y: y @ torch.cov(y.T),
    ],
)
def test_what_gives_no_tensor_has_no_axes(read):
    net = Net(lambda m, x: m.h(read(m.a(x))), a=linear(5, 8), h=linear(8, 3))
    claim_holds(net, torch.randn(6, 5))


def test_correlations_are_traced():
    net = Net(
        lambda m, x: m.h(m.a(x) @ torch.corrcoef(m.b(x).T)),
        a=linear(5, 8),
        b=linear(5, 8),
        h=linear(8, 3),
    )
    assert "aten.diagonal" in str(sec.trace(net.eval(), torch.randn(6, 5)))


def test_a_constant_that_is_no_number_is_no_change():
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.h(net.a(x).relu())
        return torch.nan_to_num(y.masked_fill(y < -10, float("nan")))

    net = Net(forward, a=linear(6, 16), h=linear(16, 4))
    assert claim_holds(net, torch.randn(3, 6)).removed == {"a": 8}


def test_sums_of_many_parts_meet_without_recursion():
    def forward(net: Net, x: Tensor) -> Tensor:
        halves = [torch.cat([m(x) for m in side], 1) for side in (net.left, net.right)]
        return net.h(halves[0] + halves[1])

    def many(n: int, width: int) -> nn.ModuleList:
        return nn.ModuleList(linear(4, width) for _ in range(n))

    net = Net(forward, left=many(900, 4), right=many(600, 6), h=linear(3600, 3))
    graph = sec.trace(net.eval(), torch.randn(2, 4))
    assert sorted({c.size for c in graph.free.values()}) == [2, 4]  # of 12: cut at 4, 6 and 8
    assert sum(c.size for c in graph.free.values()) == 3600 and len(graph.free) == 1200


def test_sums_are_cut_where_either_ends():
    def forward(net: Net, x: Tensor) -> Tensor:
        left = torch.cat([net.a(x), net.b(x), net.c(x)], 1)
        return net.h(left + torch.cat([net.d(x), net.e(x)], 1))

    widths = {"a": 3, "b": 5, "c": 4, "d": 5, "e": 7}
    net = Net(forward, **{n: linear(4, k) for n, k in widths.items()}, h=linear(12, 3))
    x = torch.randn(3, 4)
    graph = sec.trace(net.eval(), x)
    assert sorted(c.size for c in graph.free.values()) == [2, 3, 3, 4]
    claim_holds(net, x)
