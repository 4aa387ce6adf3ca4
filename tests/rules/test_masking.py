"""What is called exact must equal the masked network: the places where zero in is not zero out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sec


class Net(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


def total(x):
    return x.sum(1, keepdim=True)


def put(h):
    h[torch.tensor([0, 2])] = 1.0
    return h


def width_8(forward, **parts):
    return Net(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 5), **parts)


# Masked units are not zero in these sums, or divide by zero: statistical, and proven as such.
STATISTICAL = {
    "expanded input": lambda: Net(
        lambda m, x: total((x[:, :1].expand(-1, 8) - m.w).abs()) * m.s, w=weight(8), s=weight(5)
    ),
    "bias that is not zero": lambda: Net(
        lambda m, x: total(F.linear(x, m.w, m.c.sigmoid())) * m.s,
        w=weight(8, 6), c=weight(8), s=weight(5),
    ),
    "bias of size one": lambda: Net(
        lambda m, x: total(torch.addmm(m.c, x, m.w)) * m.s, w=weight(6, 8), c=weight(1), s=weight(5)
    ),
    "number put at indices": lambda: width_8(lambda m, x: m.b(m.a(x)) + total(put(m.a(x)))),
    "norm shifted at masked heads": lambda: Net(
        lambda m, x: m.n(m.a(x).view(-1, 4, 8)).sum(1) @ m.w,
        a=nn.Linear(6, 32), n=nn.LayerNorm(8), w=weight(8, 5),
    ),
    "smallest, as a norm": lambda: width_8(
        lambda m, x: m.b(m.a(x)) + torch.linalg.vector_norm(m.a(x), -torch.inf, 1, keepdim=True)
    ),
    "division by a parameter": lambda: width_8(lambda m, x: m.b(m.a(x) / m.w), w=weight(8)),
    "rows divided by their length": lambda: Net(
        lambda m, x: m.b(F.linear(x, m.w / m.w.norm(dim=1, keepdim=True))),
        w=weight(8, 6), b=nn.Linear(8, 5),
    ),
    "logarithm": lambda: width_8(lambda m, x: m.b(m.a(x).abs().log())),
    "inverse root": lambda: width_8(lambda m, x: m.b(m.a(x) * m.w.abs().rsqrt()), w=weight(8)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", STATISTICAL)
def test_units_that_masking_does_not_silence_are_statistical(name):
    net = STATISTICAL[name]()
    for p in net.parameters():
        nn.init.normal_(p)
    graph = sec.trace(net, torch.randn(3, 6))
    assert graph.free and not any(c.exact for c in graph.free.values() if c.kind != "width")
    plan = sec.plan(graph, amount=0.5, criterion="random", statistical=True, seed=1)
    assert plan.verify(net).ok


@pytest.mark.parametrize("ends", [(1, -1), (-1, 1), (2, -3), (-2, 0)])
def test_a_shift_by_padding_keeps_the_rest_exact(ends):
    width = 8 + sum(ends)
    net = Net(lambda m, x: m.b(F.pad(m.a(x), ends)), a=nn.Linear(6, 8), b=nn.Linear(width, 5))
    graph = sec.trace(net, torch.randn(3, 6))
    assert graph.free
    plan = sec.plan(graph, amount=0.5, criterion="random", seed=1)
    pruned, x = plan.apply(net), torch.randn(4, 6)
    with sec.masked(net, plan):
        expected = net(x)
    assert torch.allclose(pruned(x), expected, atol=1e-6)


@pytest.mark.parametrize("where", ["max", "median", "min"])
def test_positions_counted_among_all_units_keep_them(where):
    net = Net(
        lambda m, x: m.e(getattr(m.a(x), where)(1).indices),
        a=nn.Linear(6, 8),
        e=nn.Embedding(8, 5),
    )
    assert not sec.trace(net, torch.randn(3, 6)).free


def test_a_strided_piece_and_empty_lists_can_be_traced():
    net = Net(
        lambda m, x: m.b(m.a(x)[:, 0:4:2]) + torch.cat([torch.empty(0)] * 2).sum(),
        a=nn.Linear(6, 8),
        b=nn.Linear(2, 5),
    )
    assert not sec.trace(net, torch.randn(3, 6)).free
