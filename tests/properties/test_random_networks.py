"""Whatever the network and whatever the plan: the pruned network equals the masked one."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from networks import (
    Attention,
    Dense,
    Depthwise,
    Gated,
    Grouped,
    GroupNormed,
    Mlp,
    Network,
    PackedAttention,
    Recurrent,
    Residual,
    Shuffle,
    Wide,
)
from torch import Tensor, nn

from secateur.graph import Graph, trace
from secateur.graph.forward import named_tensors
from secateur.plan import Plan


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width = draw(st.sampled_from([4, 6, 8]))
    c, images = width, []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(
            st.sampled_from(
                ["residual", "wide", "grouped", "depthwise", "dense", "shuffle", "gated", "gn"]
            )
        )
        match kind:
            case "residual":
                images.append(Residual(c))
            case "wide":
                images.append(Wide(c, out := draw(st.sampled_from([5, 8, 12]))))
                c = out
            case "grouped":
                images.append(Grouped(c, draw(st.sampled_from([2, 3, 4])), draw(st.booleans())))
            case "depthwise":
                images.append(Depthwise(c, draw(st.sampled_from([1, 2]))))
            case "dense":
                images.append(Dense(c, growth := draw(st.sampled_from([3, 4]))))
                c += 2 * growth
            case "shuffle":
                images.append(Shuffle(c))
                c *= 2
            case "gated":
                images.append(Gated(c))
            case "gn":
                images.append(GroupNormed(c, draw(st.sampled_from([2, 4]))))
    tokens: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 2))):
        match draw(st.sampled_from(["gqa", "packed", "mlp", "rnn"])):
            case "gqa":
                kv, per, dim = (draw(st.sampled_from(s)) for s in ([2, 3], [1, 2], [3, 4]))
                tokens.append(Attention(width, kv, per, dim, draw(st.booleans())))
            case "packed":
                tokens.append(PackedAttention(width, draw(st.sampled_from([2, 3]))))
            case "mlp":
                tokens.append(Mlp(width, draw(st.booleans())))
            case "rnn":
                kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
                tokens.append(
                    Recurrent(width, kind, draw(st.sampled_from([1, 2])), draw(st.booleans()))
                )
    net = Network(width, images, tokens, draw(st.booleans())).eval()
    with torch.no_grad():
        for name, t in (*net.named_parameters(), *net.named_buffers()):
            if "running_var" in name:
                t.uniform_(0.5, 1.5)
            elif t.dim() == 1 and t.is_floating_point():
                t.add_(0.2 * torch.randn_like(t))
    return net


@st.composite
def choices(draw: st.DrawFn, graph: Graph, *, statistical: bool) -> dict[str, Tensor]:
    """For every class a random number of random units, per head or group where that is allowed."""
    keep = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    for c in graph.free.values():
        if c.statistical and not statistical:
            continue
        gone = draw(st.integers(0, c.size - 1))
        rows = graph.classes[c.over].size if c.over and draw(st.booleans()) else 1
        scores = torch.rand(rows, c.size, generator=generator)
        mask = scores.argsort(1).argsort(1) >= gone
        keep[c.name] = mask if rows > 1 else mask[0]
    return keep


def masked_by_hand(model: nn.Module, plan: Plan) -> nn.Module:
    """Zero what goes, position by position from the plan's masks."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, t in named_tensors(result).items():
            stays = torch.ones(t.shape, dtype=torch.bool)
            for dims, mask in plan.selection(name):
                shape = [1] * t.dim()
                for d in dims:
                    shape[d] = t.shape[d]
                in_order = mask if list(dims) == sorted(dims) else mask.T
                stays &= in_order.reshape(shape)
            t.mul_(stays)
    return result


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp_min(1e-6))


SLOW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking networks takes minutes; run it by hand
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SLOW
@given(data=st.data())
def test_pruned_equals_masked_on_exact_classes(data: st.DataObject) -> None:
    net = data.draw(networks())
    x = torch.randn(2, 3, 5, 5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    graph = trace(net, x)
    plan = Plan.of(graph, data.draw(choices(graph, statistical=False))).prepared()
    assert plan.exact
    assert not plan.notes, plan.notes
    small = plan.apply(net)
    for name, t in named_tensors(small).items():
        assert tuple(t.shape) == plan.shape(name)
    with torch.no_grad():
        assert distance(masked_by_hand(net, plan)(x), small(x)) < 1e-4
        larger = torch.randn(3, 3, 5, 5)  # another batch size than the traced one
        assert distance(masked_by_hand(net, plan)(larger), small(larger)) < 1e-4
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@SLOW
@given(data=st.data())
def test_statistical_classes_agree_with_the_reference(data: st.DataObject) -> None:
    net = data.draw(networks())
    graph = trace(net, torch.randn(2, 3, 5, 5))
    plan = Plan.of(graph, data.draw(choices(graph, statistical=True))).prepared()
    found = plan.verify(net)
    assert found.proven and found.ok, found


def test_the_comparison_can_fail() -> None:
    torch.manual_seed(0)
    net = Network(8, [Residual(8)], [Mlp(8, True)], False).eval()
    graph = trace(net, torch.randn(2, 3, 5, 5))
    name = next(n for n in graph.free if "tokens" in n)
    plan = Plan.of(graph, {name: torch.arange(3)}).prepared()
    wrong = plan.apply(net)
    with torch.no_grad():
        wrong.tokens[0].b.weight[0, 0] += 1.0
    found = plan.verify(net, wrong)
    assert not found.ok
    assert found.where == "tokens.0.b"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
