"""Pools, limits and the order in which units go."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.graph import UnitClass
from secateur.graph.classes import Member
from secateur.scope.order import Limits, order


def make(name, size, kind="channel", each=1):
    unit = torch.arange(size).repeat_interleave(each)
    return UnitClass(name, kind, size, (Member(f"{name}.weight", 0, unit, True),))


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(2, 40), min_size=1, max_size=6))
    classes = [make(f"c{i}", n) for i, n in enumerate(sizes)]
    seed = draw(st.integers(0, 10_000))
    g = torch.Generator().manual_seed(seed)
    levels = draw(st.sampled_from([3, 10_000]))  # few levels: many ties
    scores = {c.name: torch.randint(0, levels, (c.size,), generator=g).float() for c in classes}
    split = draw(st.integers(1, len(classes)))
    pools = [p for p in (classes[:split], classes[split:]) if p]
    return pools, scores


@given(problems(), st.floats(0, 0.999))
@settings(max_examples=150, deadline=None)
def test_every_pool_loses_its_lowest_units_and_the_nearest_number(problem, amount):
    pools, scores = problem
    o = order(pools, scores, Limits())
    removed = o.removed(o.at < amount - 1e-9)
    masks = o.masks(removed)
    for pool in pools:
        total = sum(c.size for c in pool)
        gone = sum(removed[c.name] for c in pool)
        possible = total - len(pool)  # one unit of each class stays
        assert abs(gone - min(amount * total, possible)) <= 0.5 + 1e-6
        kept = torch.cat([scores[c.name][masks[c.name]] for c in pool])
        lost = torch.cat([scores[c.name][~masks[c.name]] for c in pool])
        strongest = {c.name: scores[c.name].max() for c in pool}
        if len(lost):  # only a class's last unit is spared although it scores low
            spared = {float(strongest[c.name]) for c in pool if masks[c.name].sum() == 1}
            low = [s for s in kept.tolist() if s not in spared]
            assert not low or lost.max() <= min(low)


@given(problems(), st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_larger_amount_removes_what_a_smaller_one_does_and_more(problem, amounts):
    pools, scores = problem
    o = order(pools, scores, Limits())
    steps = [o.masks(o.removed(o.at < a)) for a in sorted(amounts)]
    for less, more in pairwise(steps):
        assert all((more[n] <= less[n]).all() for n in less)


@given(problems(), st.integers(1, 12), st.integers(1, 9), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_limits_hold_whatever_is_asked(problem, width, multiple, ratio):
    pools, scores = problem
    limits = Limits(max_ratio=ratio, min_width=width, round_to=multiple)
    o = order(pools, scores, limits)
    for share in (0.3, 0.7, 2.0):
        for name, mask in o.masks(o.removed(o.at < share)).items():
            kept, size = int(mask.sum()), len(mask)
            assert kept == size or (
                kept % multiple == 0 and kept >= width and size - kept <= ratio * size + 1e-6
            ), name
            assert kept >= 1


def test_the_lowest_scores_go_wherever_they_are():
    a, b = make("a", 3), make("b", 3)
    scores = {"a": torch.tensor([5.0, 1.0, 9.0]), "b": torch.tensor([2.0, 8.0, 0.5])}
    together = order([[a, b]], scores, Limits())
    masks = together.masks(together.removed(together.at < 0.5))
    assert masks["a"].tolist() == [True, False, True]
    assert masks["b"].tolist() == [False, True, False]
    apart = order([[a], [b]], scores, Limits())
    assert apart.removed(apart.at < 1 / 3) == {"a": 1, "b": 1}


def test_ties_go_by_position():
    a = make("a", 4)
    o = order([[a]], {"a": torch.ones(4)}, Limits())
    assert o.masks(o.removed(o.at < 0.5))["a"].tolist() == [False, False, True, True]


def test_bundles_leave_multiples_of_eight():
    o = order([[make("a", 30)]], {"a": torch.arange(30.0)}, Limits(round_to=8))
    assert [30 - int(k) for k in o.units.cumsum(0)] == [24, 16, 8]
    small = order([[make("a", 7)]], {"a": torch.arange(7.0)}, Limits(round_to=8))
    assert len(small.units) == 0


def test_what_is_a_multiple_for_heads_is_the_number_of_their_rows():
    limits = Limits(round_to=8)
    assert limits.widths(make("h", 4, kind="head", each=16)) == [4, 3, 2, 1]
    assert limits.widths(make("h", 6, kind="head", each=4)) == [6, 4, 2]
    assert limits.widths(make("d", 16, kind="head_dim", each=4)) == [16, 8]


def test_a_bundle_scores_the_mean_of_its_units():
    a, b = make("a", 4), make("b", 4)
    scores = {"a": torch.tensor([0.0, 10.0, 20.0, 30.0]), "b": torch.tensor([4.0, 4.0, 4.0, 4.0])}
    o = order([[a, b]], scores, Limits(round_to=2))
    assert [o.classes[i] for i in o.which] == ["b", "a"]  # (4 + 4) / 2 < (0 + 10) / 2


def test_nothing_to_order():
    o = order([], {}, Limits())
    assert o.removed(o.at < 1) == {} and o.masks({}) == {}
