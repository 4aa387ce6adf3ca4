"""A forward that cannot say a new size can be pruned in its exported form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.graph import exported, trace
from secateur.plan import Plan


class Stubborn(nn.Module):
    """Checks a literal size, which no attribute and no argument can change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if y.shape[-1] != 8:
            raise ValueError("eight features, please")
        return self.b(y.reshape(x.shape[0], 2, 4).flatten(1))


def half(graph) -> Plan:
    return Plan.of(graph, {n: torch.arange(c.size // 2) for n, c in graph.free.items()}).prepared()


def test_a_stubborn_forward_keeps_its_width_and_the_note_says_what_to_do() -> None:
    net = Stubborn().eval()
    plan = half(trace(net, torch.randn(2, 6)))
    assert not plan.keep
    assert "eight features" in plan.notes[0]
    assert "exported" in plan.notes[0]


def test_the_exported_form_is_pruned_exactly_for_any_batch() -> None:
    torch.manual_seed(0)
    net = Stubborn().eval()
    flat = exported(net, torch.randn(2, 6))
    plan = half(trace(flat, torch.randn(2, 6)))
    small = plan.apply(flat)
    assert plan.verify(flat, small).ok
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    x = torch.randn(5, 6)
    w, b = (t.detach() for t in (net.a.weight, net.a.bias))
    stays = plan.masks("a.weight")[0]
    by_hand = net.b((x @ w.T + b).relu() * stays)
    torch.testing.assert_close(small(x), by_hand)
    torch.testing.assert_close(copy.deepcopy(copy.deepcopy(small))(x), by_hand)


def test_a_model_that_export_does_not_take_is_named() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(TraceError, match=r"torch\.export does not take this Reads"):
        exported(Reads(), torch.randn(2, 3))
