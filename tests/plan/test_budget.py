"""Costs are closed forms that equal what is counted on the pruned model, and budgets are met."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import BudgetError, ConfigError
from secateur.graph import trace
from secateur.measure.latency import Speedup
from secateur.plan import Plan
from secateur.plan.budget import cost, dense_cost, plan_cost
from secateur.plan.select import plan
from secateur.plan.timing import falling, judged


class Net(nn.Module):
    """Residual, grouped and depthwise convolutions, batch norms, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24))
        self.up = nn.Sequential(nn.Conv2d(24, 48, 1), nn.BatchNorm2d(48), nn.ReLU())
        self.depth = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.down = nn.Conv2d(48, 24, 1)
        self.fat = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(self.depth(self.up(x)))
        return self.head(self.fat(x.relu()).relu().flatten(1))


X = torch.randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return trace(Net().eval(), X)


def count(model, metric):
    if metric == "params":
        return sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(X)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_the_closed_form_of_the_dense_model_is_its_count(metric, graph):
    assert dense_cost(cost(graph, metric), graph) == count(graph.model, metric)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_the_closed_form_of_a_plan_is_the_count_of_the_pruned_model(graph, data):
    masks = {}
    for c in graph.free.values():
        kept = data.draw(st.integers(1, c.size))
        g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        masks[c.name] = torch.randperm(c.size, generator=g)[:kept]
    p = Plan.of(graph, masks)
    small = p.apply()
    for metric in ("params", "macs"):
        assert plan_cost(cost(graph, metric), graph, p.keep) == count(small, metric)


def test_memory_is_weights_buffers_and_the_largest_operator(graph):
    weights = sum(t.nbytes for t in graph.model.state_dict().values())
    up = 4 * 2 * 8 * 8 * 48  # bytes of 48 maps; in and out of the depthwise convolution
    assert dense_cost(cost(graph, "memory"), graph) == weights + 2 * up


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("metric", ["params", "macs", "memory"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.2])
def test_a_budget_is_met_within_two_percent(scope, metric, fraction, graph):
    p = plan(graph, keep={metric: fraction}, scope=scope)
    form = cost(graph, metric)
    got = plan_cost(form, graph, p.keep) / dense_cost(form, graph)
    assert abs(got - fraction) <= 0.02 * fraction
    if metric != "memory":
        assert count(p.apply(), metric) / count(graph.model, metric) == pytest.approx(got)


def test_a_budget_is_met_with_rounded_widths(graph):
    p = plan(graph, keep={"macs": 0.5}, round_to=4, scope="global")
    got = count(p.apply(), "macs") / count(graph.model, "macs")
    assert abs(got - 0.5) <= 0.01
    assert all(int(m.sum()) % 4 == 0 for m in p.keep.values())


def test_several_budgets_are_all_met(graph):
    p = plan(graph, keep={"macs": 0.5, "params": 0.3})
    small = p.apply()
    macs, params = (count(small, m) / count(graph.model, m) for m in ("macs", "params"))
    assert macs <= 0.51 and params <= 0.306
    assert macs >= 0.49 or params >= 0.294


def test_keeping_everything_removes_nothing(graph):
    assert plan(graph, keep={"macs": 1.0}).removed == {}


def test_an_impossible_budget_says_what_stays_and_what_to_ask_for(graph):
    with pytest.raises(BudgetError, match=r"still needs .*% of its params") as error:
        plan(graph, keep={"params": 0.001})
    assert "ask for keep >=" in str(error.value)
    least = float(str(error.value).split("keep >= ")[1])
    p = plan(graph, keep={"params": least * 1.01})
    got = count(p.apply(), "params") / count(graph.model, "params")
    assert got == pytest.approx(least, rel=0.04)


def test_overrides_that_remove_too_much_are_reported(graph):
    with pytest.raises(BudgetError, match="overrides= alone"):
        plan(graph, keep={"macs": 0.9}, overrides={"up.0": 0.9})


def test_a_budget_between_two_whole_numbers_of_units_names_the_nearest():
    net = nn.Sequential(nn.Linear(40, 3), nn.ReLU(), nn.Linear(3, 40))
    g = trace(net, torch.randn(2, 40))
    with pytest.raises(BudgetError, match="nearest") as error:
        plan(g, keep={"params": 0.5})
    nearest = float(str(error.value).split("keep=")[2].split(".  ")[0].split(" ")[0].rstrip("."))
    p = plan(g, keep={"params": nearest})
    assert sum(q.numel() for q in p.apply().parameters()) == pytest.approx(
        nearest * sum(q.numel() for q in net.parameters()), rel=0.02
    )


def test_latency_is_met_as_measured(graph):
    """A clock that counts multiply-accumulates: deterministic, and steep enough to tell."""
    calls = []

    def clock(model):
        calls.append(1)
        return 1.0 + count(model, "macs")

    p = plan(graph, keep={"latency": 0.5}, latency=clock)
    got = clock(p.apply()) / clock(graph.model)
    assert 0.48 <= got <= 0.51
    assert len(calls) <= 15


def test_latency_that_does_not_fall_is_reported(graph):
    with pytest.raises(BudgetError, match="still takes 100"):
        plan(graph, keep={"latency": 0.5}, latency=lambda model: 1.0)


def test_latency_of_the_machine(graph):
    big = nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 256)).eval()
    p = plan(trace(big, torch.randn(32, 256)), keep={"latency": 0.6})
    assert 0 < p.removed["0"] < 2048


def test_a_noisy_clock_moves_the_answer_little(graph):
    """Every reading of the clock is wrong by 15 %, of the dense model and of the pruned one."""
    dense = count(graph.model, "macs")
    for seed in range(4):
        draw = random.Random(seed)

        def clock(model, draw=draw):
            return count(model, "macs") * draw.lognormvariate(0, 0.15)

        p = plan(graph, keep={"latency": 0.5}, latency=clock)
        assert 0.35 <= count(p.apply(), "macs") / dense <= 0.7


def test_far_fewer_macs_than_the_asked_latency_are_said(graph):
    """A clock that hardly falls: half of the time is not in the products."""
    dense = count(graph.model, "macs")
    p = plan(graph, keep={"latency": 0.55}, latency=lambda m: 1 + count(m, "macs") / dense)
    assert any("of the MACs are left, for latency=0.55" in note for note in p.notes)
    assert any(note.startswith("latency=0.55 was asked, 0.5") for note in p.notes)
    p = plan(graph, keep={"latency": 0.55}, latency=lambda m: count(m, "macs"))
    assert not any("of the MACs are left" in note for note in p.notes)


@given(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=7))
def test_the_falling_curve_is_the_nearest(values):
    """Against the closed form: the least of the greatest means (Barlow and others)."""
    n = len(values)

    def mean(a, b):
        return sum(values[a:b]) / (b - a)

    oracle = [
        min(max(mean(a, b) for b in range(i + 1, n + 1)) for a in range(i + 1)) for i in range(n)
    ]
    assert falling(values, [1] * n) == pytest.approx(oracle)


def test_a_budget_of_latency_is_judged_by_what_was_measured():
    assert judged(0.6, Speedup(1.75, 1.7, 1.8), 20).endswith("measured 0.57, met")
    assert judged(0.6, Speedup(1.25, 1.2, 1.3), 20).endswith("measured 0.80, not met")
    assert "not conclusive" in judged(0.6, Speedup(1.5, 0.01, 110.0), 20)


def test_a_model_without_products_has_no_macs():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return (x * self.s).sum()

    with pytest.raises(BudgetError, match="nothing"):
        cost(trace(Scale(), torch.randn(2, 4)), "macs")


def test_unknown_metrics_are_named(graph):
    with pytest.raises(ConfigError, match="did you mean 'macs'"):
        plan(graph, keep={"mac": 0.5})
