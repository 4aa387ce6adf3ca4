"""A number that a forward makes of a width stays what it was, in whatever tensor it is put."""

import pytest
import torch
from torch import nn

import secateur as sec


class Scores(nn.Module):
    """Products of queries and keys, scaled by something made of their width."""

    def __init__(self, scaled):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(5, 3)
        self.scaled = scaled

    def forward(self, x):
        return self.out(self.scaled(self.q(x)) @ self.k(x).transpose(-1, -2))


def into(q):
    return torch.empty_like(q).fill_(q.size(-1))


def put(q):
    scale = torch.ones(2, 1, 1)
    scale[:] = q.size(-1)
    return scale


SCALED = {
    "root of a tensor": lambda q: q / torch.sqrt(torch.tensor(q.size(-1), dtype=torch.float) * 3),
    "root of a whole tensor": lambda q: q / torch.sqrt(torch.tensor(q.shape[-1])),
    "filled": lambda q: q * torch.full((), q.size(-1), dtype=q.dtype).rsqrt(),
    "filled alike": lambda q: q / torch.full_like(q, q.shape[-1]),
    "new tensor": lambda q: q / q.new_tensor(q.shape[-1]),
    "filled in place": lambda q: q / into(q),
    "put into a slice": lambda q: q / put(q),
    "bounded": lambda q: q.clamp(max=q.size(-1) // 8),
}


@pytest.mark.parametrize("how", SCALED)
def test_pruned_queries_are_scaled_as_the_wide_ones_were(how):
    torch.manual_seed(0)
    net, x = Scores(SCALED[how]), torch.randn(2, 5, 6)
    kept = [0, 2, 5]
    plan = sec.Plan.of(sec.trace(net, x), {"q": torch.tensor(kept)})
    small = plan.apply(net)
    assert small.q.out_features == 3
    with torch.no_grad():
        q = SCALED[how](net.q(x))[..., kept]
        expected = net.out(q @ net.k(x)[..., kept].transpose(-1, -2))
        torch.testing.assert_close(small(x), expected)
    assert plan.verify(net, small).ok


def test_positions_and_sizes_made_into_tensors_follow_the_pruned_width():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h) * torch.tensor([h.size(0), h.size(1)]).sum()

    net, x = Last().eval(), torch.randn(2, 5, 6)
    plan = sec.Plan.of(sec.trace(net, x), {"a": torch.tensor([1, 2])})
    assert plan.verify(net).ok


@torch.jit.script
def scaled(q: torch.Tensor) -> torch.Tensor:
    return q * (float(q.size(-1)) ** -0.5)


class Compiled(nn.Module):
    """A scale computed from a width where no Python runs."""

    def __init__(self, *held):
        super().__init__()
        self.q, self.o = nn.Linear(12, 16), nn.Linear(16, 5)
        self.v = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 16))
        self.held = held

    def forward(self, x):
        scale = self.held[0][0] if self.held else scaled
        return self.o(scale(self.q(x)) + self.v(x))


@pytest.mark.parametrize("held", [(), ([scaled],)], ids=["global", "attribute"])
def test_a_width_that_compiled_code_reads_stays_whole(held):
    model, x = Compiled(*held).eval(), torch.randn(2, 7, 12)
    graph = sec.trace(model, x)
    assert "inside TorchScript code" in graph.classes["q"].locked
    plan = sec.plan(graph, amount=0.5)
    assert plan.removed == {"v.0": 4}
    assert plan.verify(model).ok
    assert plan.apply()(x).shape == (2, 7, 5)


def test_a_plan_of_which_nothing_is_left_is_empty():
    """Compiled code that the replay cannot enter: its one class is given back."""
    block = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.Hardtanh()), torch.randn(2, 16))
    model = nn.Sequential(nn.Linear(4, 16), block, nn.Linear(16, 2)).eval()
    plan = sec.plan(sec.trace(model, torch.randn(2, 4)), amount=0.5)
    assert not plan.removed or plan.verify(model).ok
    assert plan.removed or plan.notes
