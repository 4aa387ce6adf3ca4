"""The masked reference of statistical classes: it runs what the trace ran, and no 0 / 0 is seen."""

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

    def forward(self, *x):
        return self.run(self, *x)


def half(net, *inputs):
    plan = sec.plan(sec.trace(net, inputs), amount=0.5, criterion="random", kinds="all", seed=0)
    assert plan.removed and not plan.exact
    return plan, plan.verify(net)


def test_heads_divided_by_their_own_sum_are_compared_without_those_that_are_missing():
    def forward(m, x):
        heads = m.q(x).unflatten(-1, (4, 3)).abs().transpose(1, 2)
        shares = heads / heads.sum((-1, -2), keepdim=True)  # 0 / 0 where a head is masked
        return m.out(shares.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    net = Net(forward, q=nn.Linear(6, 12), out=nn.Linear(12, 5))
    _, verified = half(net.eval(), torch.randn(2, 7, 6))
    assert verified.proven and verified.ok, verified


def test_products_are_taken_apart_as_in_the_trace_though_weights_need_gradients():
    """A linear layer over a transposed input (gMLP): folded or not, as gradients are needed."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.out(m.over_tokens(m.norm(m.a(x)).transpose(1, 2)).transpose(1, 2)),
        a=nn.Linear(6, 8),
        norm=nn.LayerNorm(8),
        over_tokens=nn.Linear(7, 7),
        out=nn.Linear(8, 5),
    )
    assert all(p.requires_grad for p in net.parameters())
    _, verified = half(net.eval(), torch.randn(2, 7, 6))
    assert verified.proven and verified.ok, verified


def test_grouped_convolutions_with_standardised_weights_keep_the_groups_that_are_left():
    def standard(w):
        return (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)

    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.out(F.conv2d(m.a(x).sigmoid(), standard(m.w), groups=4).relu().mean((2, 3))),
        a=nn.Conv2d(3, 16, 3),
        w=nn.Parameter(torch.randn(16, 4, 3, 3)),
        out=nn.Linear(16, 5),
    )
    _, verified = half(net.eval(), torch.randn(2, 3, 9, 9))
    assert verified.proven and verified.ok, verified


def test_an_attribute_that_the_forward_asks_about_does_not_change_its_operators():
    """Split attention: with ``radix`` set to 1 the forward would take a sigmoid instead."""

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.radix = 2

        def forward(self, x):
            if self.radix > 1:
                return x.view(x.shape[0], self.radix, -1).softmax(1).flatten(1)
            return x.sigmoid()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), Split(), nn.Linear(16, 5)).eval()
    x = torch.randn(3, 6)
    graph = sec.trace(net, x)
    radix = next(c for c in graph.free.values() if c.size == 2)
    plan = sec.Plan.of(graph, {radix.name: torch.tensor([1])})
    small = plan.apply(net)
    assert plan.verify(net, small).ok
    torch.testing.assert_close(small[1](small[0](x)), torch.ones(3, 8))  # a softmax over one


def test_heads_are_sampled_at_their_own_points():
    """Deformable attention: what is sampled and where it is sampled are the same heads."""

    def forward(m, x, pixels):
        value = m.value(pixels).view(2, 4, 3, 36).flatten(0, 1).view(8, 3, 6, 6)
        points = m.points(x).view(2, 5, 4, 2).transpose(1, 2).flatten(0, 1)
        found = F.grid_sample(value, points.tanh().unsqueeze(2), align_corners=False)
        return m.out(found.squeeze(2).view(2, 12, 5).transpose(1, 2))

    torch.manual_seed(0)
    net = Net(forward, value=nn.Conv2d(3, 12, 1), points=nn.Linear(6, 8), out=nn.Linear(12, 5))
    inputs = torch.randn(2, 5, 6), torch.randn(2, 3, 6, 6)
    graph = sec.trace(net.eval(), inputs)
    (heads,) = [c for c in graph.free.values() if c.size == 4]
    assert {m.tensor for m in heads.members} >= {"value.weight", "points.weight", "out.weight"}
    plan = sec.Plan.of(graph, {heads.name: torch.tensor([0, 2])})
    assert plan.exact and plan.verify(net).ok
