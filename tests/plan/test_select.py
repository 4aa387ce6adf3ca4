"""``plan`` does what its arguments say, the same every time, and refuses nonsense."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.engine.statistics import collect
from secateur.errors import BudgetError, ConfigError, DataError, PlanError
from secateur.graph import trace
from secateur.plan.select import eligible, plan


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.block = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.mid = nn.Conv2d(16, 20, 3, padding=1)
        self.head = nn.Linear(20, 7)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.mid(x + self.block(x)))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """One pre-norm block: a residual stream under layer norms, four heads, an mlp."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16)
        x = x + self.proj(y)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return trace(Transformer().eval(), torch.randn(2, 5, 6))


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 8, 8), torch.randint(0, 7, (8,))) for _ in range(3)]


def same(a, b):
    return a.keep.keys() == b.keep.keys() and all(torch.equal(a.keep[n], b.keep[n]) for n in a.keep)


def test_half_of_every_class_by_default_the_smallest(graph):
    p = plan(graph, amount=0.5)
    assert p.removed == {"stem.0": 8, "block.0": 12, "mid": 10}
    weights = graph.model.block
    energy = weights[0].weight.square().flatten(1).sum(1) + weights[2].weight.square().sum(
        (0, 2, 3)
    )
    assert set(energy.argsort()[:12].tolist()) == set(
        (~p.keep["block.0"]).nonzero().flatten().tolist()
    )


def test_the_pruned_model_runs_and_the_original_is_untouched(graph):
    before = {n: t.clone() for n, t in graph.model.state_dict().items()}
    small = plan(graph, amount=0.5).apply()
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    assert all(torch.equal(t, before[n]) for n, t in graph.model.state_dict().items())


def test_nothing_is_an_amount(graph):
    assert plan(graph, amount=0).removed == {}


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_the_same_arguments_give_the_same_plan(scope, graph, data):
    for criterion in ("l2", "random", "taylor"):
        options = {"amount": 0.4, "criterion": criterion, "scope": scope, "data": data}
        assert same(plan(graph, **options), plan(graph, **options))


def test_the_seed_decides_what_is_random_even_the_order_of_a_loader(graph, data):
    one, other = (plan(graph, amount=0.5, criterion="random", seed=s) for s in (1, 2))
    assert not same(one, other)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*data, strict=True))),
        batch_size=4,
        shuffle=True,
    )
    options = {"amount": 0.5, "criterion": "taylor", "data": loader}
    assert same(plan(graph, **options), plan(graph, **options))


def test_global_compares_what_uniform_does_not(graph):
    with torch.no_grad():
        graph.model.mid.weight *= 1e-3
    together = plan(graph, amount=0.35, scope="global", normalizer="none", reduction="first")
    assert together.removed["mid"] == 18  # at most 0.9 of a class unless the amount needs it
    assert sum(together.removed.values()) == 21
    capped = plan(graph, amount=0.3, scope="global", normalizer="none", max_ratio=0.5)
    assert max(capped.removed[n] / graph.sizes[n] for n in capped.removed) <= 0.5


def test_a_cap_is_left_only_if_it_has_to_be(graph):
    p = plan(graph, amount=0.93, scope="global")
    assert sum(p.removed.values()) == round(0.93 * 60)
    with pytest.raises(BudgetError, match="max_ratio"):
        plan(graph, amount=0.93, scope="global", max_ratio=0.9)


def test_widths_stay_above_their_minimum(graph):
    p = plan(graph, amount=0.9, min_width=6)
    assert {n: int(m.sum()) for n, m in p.keep.items()} == {"stem.0": 6, "block.0": 6, "mid": 6}
    tiny = plan(graph, amount=0.999)
    assert all(int(m.sum()) == 1 for m in tiny.keep.values())


def test_round_to_leaves_multiples(graph):
    p = plan(graph, amount=0.4, round_to=8)
    assert {n: int(m.sum()) for n, m in p.keep.items()} == {"stem.0": 8, "block.0": 16, "mid": 16}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("mid", "mid"),
        ("mid.weight", "mid"),
        ("*.0.weight", "stem.0 block.0"),
        ("block", "stem.0 block.0"),  # the container: its last layer makes the residual stream
        ("stem.1", "stem.0"),
        ("m?d", "mid"),
    ],
)
def test_ignored_names_stay_whole(pattern, left, graph):
    p = plan(graph, amount=0.5, ignore=[pattern])
    assert set(p.removed) == {"stem.0", "block.0", "mid"} - set(left.split())


def test_a_consumer_can_be_ignored_without_effect_on_what_it_reads(graph):
    assert "mid" in plan(graph, amount=0.5, ignore=["head"]).removed


def test_overrides_have_amounts_of_their_own(graph):
    p = plan(graph, amount=0.5, overrides={"mid": 0.2, "block.0": 0.0})
    assert p.removed == {"stem.0": 8, "mid": 4}
    budget = plan(graph, keep={"macs": 0.6}, overrides={"mid": 0.2})
    assert budget.removed["mid"] == 4


def test_unknown_names_are_errors_with_a_hint(graph):
    with pytest.raises(ConfigError, match=r"ignore: .*did you mean 'block"):
        plan(graph, amount=0.5, ignore=["blokc.0"])
    with pytest.raises(ConfigError, match=r"overrides: .*'lay\*'"):
        plan(graph, amount=0.5, overrides={"lay*": 0.2})
    with pytest.raises(ConfigError, match="did you mean 'channel'"):
        plan(graph, amount=0.5, kinds=["chanel"])


def test_heads_go_whole_unless_asked_otherwise(transformer):
    kinds = {c.kind for c in eligible(transformer)}
    assert "head" in kinds and "head_dim" not in kinds
    assert "head_dim" in {c.kind for c in eligible(transformer, kinds="all")}
    assert {c.kind for c in eligible(transformer, kinds=["head"])} == {"head"}
    assert len(eligible(transformer, kinds="all")) == len(transformer.free)


@pytest.mark.parametrize("ask", [{"amount": 0.5}, {"keep": {"params": 0.6}}])
@pytest.mark.parametrize("criterion", ["l2", "random", "fpgm"])
def test_heads_and_groups_choose_their_own_if_asked(ask, criterion, transformer):
    convs = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, groups=2), nn.Conv2d(24, 8, 1)
    )
    groups = trace(convs.eval(), torch.randn(2, 3, 5, 5))
    for graph in (groups, transformer):
        p = plan(graph, **ask, criterion=criterion, kinds="all", statistical=False, fibred=True)
        rows = [m for m in p.keep.values() if m.dim() == 2]
        assert any((m != m[:1]).any() for m in rows)
        assert all(len(m.sum(1).unique()) == 1 for m in rows)
        assert p.verify().ok
        for metric, fraction in ask.get("keep", {}).items():
            kept = sum(q.numel() for q in p.apply().parameters())
            dense = sum(q.numel() for q in graph.model.parameters())
            assert metric == "params" and abs(kept / dense / fraction - 1) <= 0.02


def test_statistical_classes_can_be_left_alone(transformer):
    assert any(not c.exact for c in eligible(transformer))
    p = plan(transformer, amount=0.5, statistical=False)
    assert p.exact and "fc1" in p.removed
    assert not plan(transformer, amount=0.5).exact


def test_classes_of_buffers_alone_are_left_alone():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("table", torch.randn(9, 4))

        def forward(self, x):
            return self.b(F.relu(self.a(x + self.table.sum(0))))

    found = trace(Table(), torch.randn(2, 4))
    assert any(c.size == 9 for c in found.free.values())
    assert [c.name for c in eligible(found)] == ["a"]


def test_nothing_to_prune_says_why(graph, transformer):
    with pytest.raises(PlanError, match="are ignored"):
        plan(graph, amount=0.5, ignore=["*"])
    with pytest.raises(PlanError, match="statistical=False"):
        plan(transformer, amount=0.5, kinds=["width"], statistical=False)
    with pytest.raises(PlanError, match="batch norms"):
        plan(transformer, amount=0.5, criterion="bn_scale")


def test_a_criterion_that_cannot_score_a_class_leaves_it_whole_and_says_so(graph):
    p = plan(graph, amount=0.5, criterion="bn_scale")
    assert set(p.removed) == {"stem.0"}
    assert any("block.0" in note and "bn_scale" in note for note in p.notes)


def test_data_are_asked_for_before_any_work(graph, data):
    with pytest.raises(DataError, match=r"pass data=.*l2"):
        plan(graph, amount=0.5, criterion="taylor")
    with pytest.raises(DataError, match="no batch"):
        plan(graph, amount=0.5, criterion="taylor", data=[])
    statistics = collect(graph, {"grad_sq"}, data)
    ready = plan(graph, amount=0.5, criterion="taylor", statistics=statistics)
    assert same(ready, plan(graph, amount=0.5, criterion="taylor", data=data))


@pytest.mark.parametrize(
    "criterion", ["hrank", "apoz", "activation", "taylor_gate", "fisher", "obd"]
)
def test_criteria_of_data_make_plans_that_run(criterion, graph, data):
    p = plan(graph, amount=0.5, criterion=criterion, data=data)
    assert p.removed and p.apply()(data[0][0]).shape == (8, 7)
    assert p.made_by["samples"] == 24


def test_options_instances_and_functions(graph):
    p = plan(graph, amount=0.5, criterion=("lp", {"p": 2}))
    assert same(p, plan(graph, amount=0.5, criterion="l2"))
    assert p.made_by["criterion"] == "lp" and p.made_by["options"] == {"p": 2}
    mine = plan(graph, amount=0.5, criterion=lambda weight, stats: weight**2)
    assert same(mine, plan(graph, amount=0.5, normalizer="none", reduction="sum"))


def test_what_made_the_plan_can_be_written_down(graph):
    p = plan(graph, keep={"macs": 0.5}, scope="global", ignore=["mid"], round_to=2, seed=3)
    made = json.loads(json.dumps(dict(p.made_by)))
    assert made["budget"] == {"macs": 0.5} and made["scope"] == "global" and made["seed"] == 3
    assert made["ignore"] == ["mid"] and made["criterion"] == "l2"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amount": 0.5, "keep": {"macs": 0.5}},
        {"amount": 1.0},
        {"amount": -0.1},
        {"amount": float("nan")},
        {"amount": True},
        {"amount": "half"},
        {"keep": {"macs": 0.0}},
        {"keep": {"macs": 1.5}},
        {"amount": 0.5, "overrides": {"mid": 1.0}},
        {"amount": 0.5, "max_ratio": 2},
        {"amount": 0.5, "min_width": 0},
        {"amount": 0.5, "round_to": 2.5},
        {"amount": 0.5, "scope": "locally"},
        {"amount": 0.5, "criterion": "l3"},
        {"amount": 0.5, "reduction": "median"},
    ],
)
def test_numbers_and_names_out_of_range_are_refused(options, graph):
    with pytest.raises(ConfigError):
        plan(graph, **options)


def test_weights_that_are_not_finite_are_refused_by_name(graph):
    with torch.no_grad():
        graph.model.mid.weight[3, 2] = float("inf")
    with pytest.raises(DataError, match=r"mid\.weight"):
        plan(graph, amount=0.5)


def test_what_is_left_very_narrow_is_noted(graph):
    made = plan(graph, amount=0.0, overrides={"mid": 0.95})
    assert made.removed == {"mid": 19}
    assert [n for n in made.notes if n.startswith("very narrow: mid keeps 1 of 20;")]
    assert not [n for n in plan(graph, amount=0.5).notes if "narrow" in n]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda weight, stats: weight[:3], r"\(3, 6\) instead .* for each element, \(16, 6\)"),
        (lambda weight, stats: float(weight.sum()), "float instead of a tensor"),
    ],
)
def test_scores_of_another_shape_are_named(scores, said):
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ConfigError, match=said):
        plan(trace(net, torch.randn(2, 6)), amount=0.5, criterion=scores)
