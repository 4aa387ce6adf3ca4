"""Scores of units are the scores of all that goes with them, added up by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from secateur import criteria
from secateur.engine.statistics import collect
from secateur.errors import ConfigError, DataError
from secateur.granularity import units
from secateur.granularity.sums import unit_sum
from secateur.granularity.units import REDUCTIONS, joined, score, unit_rows
from secateur.graph import Member, trace


def class_of(graph, tensor, axis, kind=None):
    """The free class that runs along an axis of a parameter."""
    (found,) = [
        c
        for c in graph.free.values()
        if any(m.tensor == tensor and m.axis == axis for m in c.members)
        and (kind is None or c.kind == kind)
    ]
    return found


def raw(graph, c, which, **options):
    options = {"reduction": "sum", "normalizer": "none", **options}
    return score(graph, [c], criteria.find(which), **options)[c.name]


def test_a_residual_channel_is_all_that_touches_it(residual, residual_graph):
    n, c = residual, class_of(residual_graph, "stem.weight", 0)
    assert c.size == 4
    parts = [
        [
            n.stem.weight[i].square().sum(),
            n.bn0.weight[i].square(),
            n.up.weight[:, i].square().sum(),
            n.down.weight[i].square().sum(),
            n.bn3.weight[i].square(),
            n.head.weight[:, i].square().sum(),
        ]
        for i in range(4)
    ]
    together = torch.tensor([[float(p.detach()) for p in row] for row in parts]).T
    assert_close(raw(residual_graph, c, "l2"), together.sum(0))
    assert_close(raw(residual_graph, c, "l2", reduction="mean"), together.mean(0))
    assert_close(raw(residual_graph, c, "l2", reduction="max"), together.amax(0))
    assert_close(raw(residual_graph, c, "l2", reduction="min"), together.amin(0))
    assert_close(raw(residual_graph, c, "l2", reduction="prod"), together.prod(0))


def test_a_depthwise_channel_counts_its_own_filter(residual, residual_graph):
    n, c = residual, class_of(residual_graph, "up.weight", 0)
    expected = [
        n.up.weight[i].abs().sum()
        + n.bn1.weight[i].abs()
        + n.depth.weight[i].abs().sum()
        + n.bn2.weight[i].abs()
        + n.down.weight[:, i].abs().sum()
        for i in range(6)
    ]
    assert_close(raw(residual_graph, c, "l1"), torch.stack(expected).detach())
    assert_close(
        raw(residual_graph, c, "l1", reduction="first"),
        n.up.weight.detach().abs().flatten(1).sum(1),
    )


def test_a_key_head_takes_its_query_heads_along(queries, queries_graph):
    n = queries
    kv = next(
        c
        for c in queries_graph.free.values()
        if c.size == 2
        and "k.weight" in tensors(c)
        and "q.weight" in tensors(c)
        and len(members(c, "v.weight")) == 1
    )
    expected = []
    for h in range(2):
        q = n.q.weight.view(2, 2, 3, 7)[h].square().sum()
        k = n.k.weight.view(2, 3, 7)[h].square().sum()
        v = n.v.weight.view(2, 3, 7)[h].square().sum()
        o = n.o.weight.view(7, 2, 2, 3)[:, h].square().sum()
        expected.append(q + k + v + o)
    assert_close(raw(queries_graph, kv, "l2"), torch.stack(expected).detach())


def tensors(c):
    return {m.tensor for m in c.members}


def members(c, tensor):
    return [m for m in c.members if m.tensor == tensor]


@pytest.mark.parametrize("name", ["saliency", "taylor", "fisher", "taylor2"])
def test_reduction_over_any_class_equals_loops_over_members(name, residual_graph, images):
    chosen = criteria.find(name)
    statistics = collect(residual_graph, chosen.needs, images)
    parameters = dict(residual_graph.model.named_parameters())
    for c in residual_graph.free.values():
        per_member = []
        for m in c.members:
            if m.tensor not in parameters or (m.tensor.endswith("bias") and not chosen.biases):
                continue
            elements = chosen(parameters[m.tensor].detach(), statistics.tensors[m.tensor])
            rows = elements.movedim(m.axis, 0)
            total = [0.0] * c.size
            for position, unit in enumerate(m.unit.tolist()):
                if unit >= 0:
                    total[unit] += float(rows[position].sum())
            per_member.append(total)
        for reduction in ("sum", "mean", "max"):
            expected = REDUCTIONS[reduction](torch.tensor(per_member))
            found = score(
                residual_graph, [c], chosen, statistics, reduction=reduction, normalizer="none"
            )[c.name]
            assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("normalizer", "naive"),
    [
        ("none", lambda s: s),
        ("sum", lambda s: s / sum(s.tolist())),
        ("mean", lambda s: s / (sum(s.tolist()) / len(s))),
        ("max", lambda s: s / max(s.tolist())),
        ("std", lambda s: s / s.var(correction=0).sqrt()),
        ("gaussian", lambda s: (s - s.mean()) / s.var(correction=0).sqrt()),
    ],
)
def test_normalizers(normalizer, naive, residual_graph):
    c = class_of(residual_graph, "up.weight", 0)
    plain = raw(residual_graph, c, "l2")
    assert_close(raw(residual_graph, c, "l2", normalizer=normalizer), naive(plain))


@pytest.mark.parametrize("normalizer", units.NORMALIZERS)
def test_a_class_of_zeros_has_finite_scores(normalizer):
    assert units.NORMALIZERS[normalizer](torch.zeros(4)).isfinite().all()


def test_lamp_ranks_units_by_energy_and_scores_the_strongest_one(residual_graph):
    c = class_of(residual_graph, "up.weight", 0)
    energy = raw(residual_graph, c, "l2")
    found = score(residual_graph, [c], criteria.find("lamp"))[c.name]
    assert_close(found, torch.stack([e / energy[energy >= e].sum() for e in energy]))


def test_bn_scale_adds_all_norms_of_a_unit_and_says_nothing_of_others(residual, residual_graph):
    found = score(residual_graph, residual_graph.free.values(), criteria.find("bn_scale"))
    stem = class_of(residual_graph, "stem.weight", 0)
    expected = (residual.bn0.weight.abs() + residual.bn3.weight.abs()) / 2
    assert_close(found[stem.name], expected.detach())
    plain = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    assert score(plain, plain.free.values(), criteria.find("bn_scale")) == {}


def test_filters_are_compared_inside_each_layer_that_makes_them(residual, residual_graph):
    stem = class_of(residual_graph, "stem.weight", 0)
    naive = []
    for layer in (residual.stem, residual.down):
        f = layer.weight.detach().flatten(1)
        naive.append(torch.tensor([sum(float((a - b).norm()) for b in f) for a in f]))
    found = raw(residual_graph, stem, "fpgm", reduction="mean")
    assert_close(found, torch.stack(naive).mean(0))


def test_heads_are_filters_of_all_their_rows(queries, queries_graph):
    c = next(c for c in queries_graph.free.values() if members(c, "v.weight") and c.size == 2)
    rows = unit_rows(queries.v.weight, members(c, "v.weight")[0], 2)
    assert_close(rows, queries.v.weight.detach().reshape(2, 21))


class Rotary(nn.Module):
    """Query and key dimensions i and i + 3 are turned together, so they go together."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 6, bias=False) for _ in range(3))
        self.o = nn.Linear(6, 5)
        self.register_buffer("speed", torch.tensor([1.0, 0.5, 0.25]))

    def forward(self, x):
        angle = torch.arange(x.shape[1])[:, None] * self.speed
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))

        def turn(t):
            return t * cos + torch.cat([-t[..., 3:], t[..., :3]], -1) * sin

        y = F.scaled_dot_product_attention(turn(self.q(x)), turn(self.k(x)), self.v(x))
        return self.o(y)


def test_an_axis_in_which_a_unit_occurs_twice_counts_once():
    net = Rotary().eval()
    graph = trace(net, torch.randn(2, 4, 5))
    c = next(c for c in graph.free.values() if c.size == 3)
    q, k = (w.weight.detach().square().sum(1).view(2, 3).sum(0) for w in (net.q, net.k))
    assert_close(raw(graph, c, "l2", reduction="mean"), (q + k) / 2)
    assert_close(raw(graph, c, "l2", reduction="first"), q)
    halves = net.q.weight.detach().view(2, 3, 5).movedim(0, 1).flatten(1)
    (m,) = [m for m in joined(c) if m.tensor == "q.weight"]
    assert_close(unit_rows(net.q.weight, m, 3), halves)


class Groups(nn.Module):
    """Grouped convolutions: every group may choose its own channels."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1, bias=False)
        self.b = nn.Conv2d(8, 12, 3, groups=2, bias=False)
        self.c = nn.Conv2d(12, 4, 1, bias=False)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu()).mean((2, 3))


def test_fibred_classes_are_scored_in_every_group():
    torch.manual_seed(0)
    net = Groups().eval()
    graph = trace(net, torch.randn(2, 3, 5, 5))
    own = [c for c in graph.free.values() if c.over]
    assert [c.size for c in own] == [4, 6]
    found = score(graph, own, criteria.find("l2"), reduction="sum", normalizer="none", fibred=True)
    a, b, c = (w.weight.detach().square() for w in (net.a, net.b, net.c))
    inner = a.sum((1, 2, 3)).view(2, 4) + b.view(2, 6, 4, 9).sum((1, 3))
    outer = b.sum((1, 2, 3)).view(2, 6) + c.sum((0, 2, 3)).view(2, 6)
    assert_close(found[own[0].name], inner)
    assert_close(found[own[1].name], outer)
    together = score(graph, own, criteria.find("l2"), reduction="sum", normalizer="none")
    assert_close(together[own[0].name], inner.sum(0))
    filters = score(graph, own, criteria.find("fpgm"), normalizer="none", fibred=True)
    f = net.b.weight.detach().flatten(1)
    naive = torch.tensor([sum(float((p - q).norm()) for q in f) for p in f])
    assert_close(filters[own[1].name].flatten(), naive)


def test_unit_sum_and_rows_ignore_positions_of_no_unit():
    m = Member("w", 0, torch.tensor([1, -1, 0, 1]), True)
    assert unit_sum(torch.tensor([1.0, 9.0, 2.0, 4.0]), m.unit, 2).tolist() == [2.0, 5.0]
    rows = unit_rows(torch.tensor([[1.0], [9.0], [2.0], [4.0]]), m, 2)
    assert rows.tolist() == [[2.0, 0.0], [1.0, 4.0]]


def test_weights_that_are_not_finite_are_named(residual, residual_graph):
    with torch.no_grad():
        residual.up.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"up\.weight holds NaN"):
        raw(residual_graph, class_of(residual_graph, "up.weight", 0), "l2")


def test_weights_on_the_meta_device_are_named():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        graph = trace(net, torch.randn(2, 4))
    with pytest.raises(DataError, match=r"0\.weight is on the meta device"):
        score(graph, graph.free.values(), criteria.find("l2"))
    assert score(graph, graph.free.values(), criteria.find("random"))["0"].shape == (8,)


@pytest.mark.parametrize(("key", "value"), [("reduction", "summ"), ("normalizer", "meen")])
def test_unknown_reductions_are_named(key, value, residual_graph):
    with pytest.raises(ConfigError, match=value):
        score(residual_graph, residual_graph.free.values(), criteria.find("l2"), **{key: value})


def test_what_scores_high_matters_to_the_loss(residual, residual_graph, images):
    """Zeroing units one by one: second-order Taylor ranks them nearly as the loss does."""
    c = class_of(residual_graph, "up.weight", 0)
    chosen = criteria.find(("taylor2", {"hessian": "hutchinson"}))
    found = score(residual_graph, [c], chosen, collect(residual_graph, chosen.needs, images))
    inputs, targets = (torch.cat(t) for t in zip(*images, strict=True))

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(residual(inputs), targets))

    dense, changes = loss(), []
    for i in range(c.size):
        saved = residual.bn2.weight[i].item(), residual.bn2.bias[i].item()
        with torch.no_grad():
            residual.bn2.weight[i] = residual.bn2.bias[i] = 0
        changes.append(abs(loss() - dense))
        with torch.no_grad():
            residual.bn2.weight[i], residual.bn2.bias[i] = saved
    ranks = [
        torch.tensor(x).argsort().argsort().double() for x in (changes, found[c.name].tolist())
    ]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.6
