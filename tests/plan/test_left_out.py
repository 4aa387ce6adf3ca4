"""What the example's forward leaves out is pruned along, or named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec


class Head(nn.Module):
    """An auxiliary head that runs in training only; ``literal`` writes its width into the code."""

    def __init__(self, *, literal: bool = False) -> None:
        super().__init__()
        self.literal = literal
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)
        self.out = nn.Linear(8, 3)
        self.aux = nn.Sequential(nn.Linear(16 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        answer = self.out(self.b(y).relu().mean((2, 3)))
        if not self.training:
            return answer
        return answer, self.aux(y.reshape(-1, 256) if self.literal else y.flatten(1))


class Experts(nn.Module):
    """Each row goes to one of six experts, of which a few rows reach a few."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.gate, self.out = nn.Linear(6, 16), nn.Linear(16, 6), nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16))
            for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x).relu()
        chosen, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero().flatten()
            if len(rows):
                y = y.index_add(0, rows, expert(x[rows]))
        return self.out(y)


class Never(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.other = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu())

    def more(self, x: Tensor) -> Tensor:
        return self.other(self.a(x).relu())


def test_a_head_of_training_is_pruned_along_with_what_feeds_it() -> None:
    model, x = Head().eval(), torch.randn(4, 3, 4, 4)
    graph = sec.trace(model, x)
    assert graph.idle == () and graph.aside == {"aux": "in training"}
    plan = sec.plan(graph, amount=0.5, criterion="random")
    small = plan.apply(model)
    assert plan.verify(model, small).ok and small.a.out_channels == 8
    assert small.aux[0].weight.shape == (4, 8 * 16)
    # Masked and pruned agree in training too, where the head's norm takes the batch's statistics.
    with sec.masked(model, plan), torch.no_grad():
        dense = model.train()(x)
    for a, b in zip(dense, small.train()(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_width_in_the_code_of_training_keeps_its_class_whole() -> None:
    model, x = Head(literal=True).eval(), torch.randn(4, 3, 4, 4)
    plan = sec.plan(sec.trace(model, x), amount=0.5).prepared()
    assert "in training mode" in plan.notes[0] and "a" not in plan.removed
    assert plan.removed["b"] == 4
    plan.apply(model).train()(x)


def test_experts_that_no_row_reached_are_pruned_like_one_that_was() -> None:
    torch.manual_seed(0)
    model, few = Experts().eval(), torch.randn(3, 6)
    graph = sec.trace(model, few)
    assert graph.idle == () and 2 < len(graph.aside) < 6
    hidden = [graph.classes[f"experts.{k}.0:width"] for k in range(6)]
    assert all(c.size == 24 and c.statistical for c in hidden)  # each its own, with its norm
    plan = sec.plan(graph, amount=0.5, criterion="random", scope="uniform")
    small = plan.apply(model)
    assert {e[0].weight.shape for e in small.experts} == {(12, 8)}
    assert small(torch.randn(100, 6)).shape == (100, 3)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Never(), "other did not run in this forward: they stay whole"),
        (Head(), "aux runs only in training"),
        (Experts(), "did not run in this forward: they are pruned like experts."),
    ],
)
def test_what_did_not_run_is_named_everywhere(model: nn.Module, said: str) -> None:
    x = torch.randn(2, 3, 4, 4) if isinstance(model, Head) else torch.randn(2, 6)
    graph = sec.trace(model.eval(), x)
    plan = sec.plan(graph, amount=0.5, statistical=False)
    text = " ".join(f"{graph} {plan.notes} {plan.verify().note}".split())
    assert text.count(said) == 3


def test_where_everything_ran_nothing_is_said() -> None:
    graph = sec.trace(nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 6))
    assert graph.idle == () and not graph.aside and "did not run" not in str(graph)


class Momentum(nn.Module):
    """Training writes a parameter; which rows go on depends on their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out, self.aux = (
            nn.Linear(a, b) for a, b in ((8, 16), (8, 16), (16, 4), (16, 4))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[x.sum(1) > 0]
        h = torch.relu(self.q(x)) + torch.relu(self.k(x))
        if not self.training:
            return self.out(h)
        with torch.no_grad():
            self.k.weight.mul_(0.9).add_(self.q.weight, alpha=0.1)
        return self.out(h) + self.aux(h)


def test_what_training_writes_is_not_written_to_the_users_model() -> None:
    model, x = Momentum().eval(), torch.rand(3, 8)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    sec.trace(model, x, on_data=True)
    sec.prune(model, x, amount=0.25, measure=False, progress=False)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
