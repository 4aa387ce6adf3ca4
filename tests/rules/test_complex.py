"""Complex parameters and buffers are tensors like any other: rotary tables, Fourier layers."""

import pytest
import torch
from torch import nn

import secateur as sec


class Fourier(nn.Module):
    """A Fourier neural operator in one dimension: products of complex weights with frequencies."""

    def __init__(self, width=12, modes=5):
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv1d(2, width, 1)
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat))
        self.skip = nn.Conv1d(width, width, 1)
        self.out = nn.Conv1d(width, 1, 1)

    def forward(self, x):
        x = self.lift(x)
        low = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bix,iox->box", low, self.weight)
        return self.out(torch.relu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.skip(x)))


class Rotary(nn.Module):
    """Llama's own code: positions are turned by a table of complex numbers."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        angles = torch.outer(torch.arange(16.0), 0.1 ** torch.arange(width // heads // 2))
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

    def turned(self, x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn[: x.shape[1], None]).flatten(3)

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)) for p in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


CASES = {
    "fourier": (Fourier, torch.randn(2, 2, 32), {"weight", "weight#2"}),
    "rotary": (Rotary, torch.randn(2, 7, 32), {"q:head"}),
}


@pytest.mark.parametrize("name", CASES)
def test_networks_with_complex_tensors_are_pruned(name):
    build, x, classes = CASES[name]
    torch.manual_seed(0)
    model = build()
    plan = sec.plan(sec.trace(model, x), amount=0.5, criterion="l2")
    assert plan.keep.keys() == classes, plan.notes
    assert plan.verify(model).ok
    assert sum(p.numel() for p in plan.apply(model).parameters()) < 0.6 * sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("criterion", ["l1", "l2", "lp", "lamp", "fpgm", "cosine"])
@pytest.mark.filterwarnings("error")
def test_imaginary_parts_count_as_much_as_real_ones(criterion):
    model, x, _ = CASES["fourier"]
    model = model()
    with torch.no_grad():
        model.weight.copy_(torch.randn_like(model.weight.real))
    graph = sec.trace(model, x)
    real = sec.plan(graph, amount=0.5, criterion=criterion).keep
    with torch.no_grad():
        model.weight.mul_(1j)
    turned = sec.plan(graph, amount=0.5, criterion=criterion).keep
    assert real
    assert all(torch.equal(real[n], turned[n]) for n in real)
