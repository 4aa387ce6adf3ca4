"""Plans as data: written and read, compared, undone, and one after the other."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_models import MODELS, build, halved, inputs, output
from torch import nn

from secateur.errors import PlanError, StoreError
from secateur.graph import trace
from secateur.graph.forward import named_tensors
from secateur.plan import Edit, Plan
from secateur.plan.encode import decode, encode, mask_of, runs
from secateur.plan.store import load, save

FLAT = [n for n in MODELS if n not in ("resnet18", "vit")]


def equal(a, b):
    return (
        a.keep.keys() == b.keep.keys()
        and all(torch.equal(m, b.keep[n]) for n, m in a.keep.items())
        and all(
            getattr(a, f) == getattr(b, f) for f in ("shapes", "axes", "exact", "notes", "edits")
        )
        and dict(a.sizes) == dict(b.sizes)
        and dict(a.made_by) == dict(b.made_by)
    )


@pytest.mark.parametrize("name", FLAT)
def test_a_plan_survives_its_file_exactly(name, pruned, tmp_path):
    _, plan, _ = pruned(name)
    plan.save(tmp_path / "plan.json")
    assert equal(Plan.load(tmp_path / "plan.json"), plan)


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any))
def test_runs_are_the_positions_that_stay(bits):
    mask = torch.tensor(bits)
    named = set()
    for run in runs(mask).split(","):
        first, _, last = run.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == {i for i, b in enumerate(bits) if b}
    assert torch.equal(mask_of(runs(mask), len(bits), "here"), mask)


NUMBER = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = NUMBER | st.lists(NUMBER, max_size=4) | st.lists(NUMBER, max_size=4).map(tuple)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["width", "config.num_heads"]), VALUE, VALUE), max_size=4)
)
def test_edits_keep_lists_tuples_and_numbers_apart(rows):
    edits = tuple(Edit("a.0", name, value, old) for name, value, old in rows)
    plan = Plan(keep={}, sizes={}, shapes={}, axes={}, edits=edits)
    again, _ = decode(encode(plan), "here")
    assert again.edits == edits
    assert [type(e.value) for e in again.edits] == [type(e.value) for e in edits]


def test_choices_for_every_head_of_its_own_survive(tmp_path):
    """A class chosen anew for every head is stored as one row for each."""
    model = build("encoder")
    graph = trace(model, inputs("encoder"))
    inner = next(c for c in graph.free.values() if c.over)
    rows = torch.zeros(graph.sizes[inner.over], inner.size, dtype=torch.bool)
    for k in range(len(rows)):
        rows[k, [k, (k + 3) % inner.size]] = True
    plan = Plan.of(graph, {inner.name: rows}).prepared()
    assert plan.removed
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert equal(again, plan) and again.keep[inner.name].shape == rows.shape
    small = plan.apply(model)
    save(tmp_path / "m", small, plan)
    loaded = load(lambda: build("encoder", 1), tmp_path / "m").eval()
    assert torch.equal(output(loaded, inputs("encoder")), output(small, inputs("encoder")))


def test_one_unit_more_changes_one_line_and_the_digest(pruned, tmp_path):
    """The file can be compared by eye."""
    _, plan, _ = pruned("plain")
    keep = {n: m.clone() for n, m in plan.keep.items()}
    keep["a"] = ~keep["a"]
    other = plan.with_keep(keep)
    texts = [encode(p).splitlines() for p in (plan, other.prepared())]
    changed = [a for a, b in zip(*texts, strict=True) if a != b]
    assert len(changed) == 2 and changed[0].startswith('  "a": ') and "sha256" in changed[1]


def test_an_edit_of_a_function_that_is_none_of_sizes_is_not_written(tmp_path):
    edit = Edit("", "args/0", 1, 2, "system", 0, ())
    plan = Plan(keep={}, sizes={}, shapes={}, axes={}, edits=(edit,))
    with pytest.raises(StoreError, match="'system' is not a function whose sizes may change"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


def test_how_a_plan_was_made_is_written_whatever_it_was(tmp_path):
    made_by = {"criterion": torch.nn.Linear, "a": (1, {2}), "ratio": float("inf"), 5: None}
    plan = Plan(keep={}, sizes={}, shapes={}, axes={}, edits=(), made_by=made_by)
    plan.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json").made_by
    assert found["ratio"] == "inf" and found["a"] == [1, [2]] and found["5"] is None
    json.dumps(found)


@pytest.mark.parametrize("name", FLAT)
def test_undoing_gives_the_model_back_to_the_bit(name, pruned):
    model, plan, small = pruned(name)
    slices = plan.removed_slices(model)
    with torch.device("meta"):
        empty = build(name)
    again = named_tensors(plan.restore(small, slices, onto=empty))
    assert all(torch.equal(again[n], t) for n, t in named_tensors(model).items())
    assert not [n for n, t in named_tensors(empty).items() if not t.is_meta]
    removed = sum(t.numel() for t in slices.values())
    before, after = (sum(t.numel() for t in named_tensors(m).values()) for m in (model, small))
    assert removed == before - after


def test_undoing_after_training_keeps_what_was_learned(pruned):
    model, plan, _ = pruned("plain")
    small = plan.apply(model)
    with torch.no_grad():
        for p in small.parameters():
            p.fill_(7)
    again = plan.restore(small, plan.removed_slices(model), onto=model)
    kept = named_tensors(plan.apply(again))
    assert all((kept[n] == 7).all() for n, _ in small.named_parameters())
    assert not torch.equal(again.a.weight, torch.full_like(again.a.weight, 7))


def test_undoing_with_slices_of_another_plan_is_refused(pruned):
    model, plan, small = pruned("plain")
    other = pruned("encoder")
    with pytest.raises(PlanError, match="the slices do not hold what was removed from"):
        plan.restore(small, other[1].removed_slices(other[0]), onto=model)
    with pytest.raises(PlanError, match="give the model that this plan made"):
        plan.restore(model, plan.removed_slices(model), onto=model)


def test_the_difference_of_two_plans_names_the_units(pruned):
    model, _, _ = pruned("plain")
    graph = trace(model, inputs("plain"))
    assert "c" not in graph.free
    first = Plan.of(graph, {"a": [0, 1]})
    second = Plan.of(graph, {"a": [1, 2]})
    found = first.diff(second)
    assert found.here == {"a": "2"} and found.there == {"a": "0"}
    assert str(found) == "a\n  - 2\n  + 0" and found and not first.diff(first)
    wider = Plan.of(graph, {"a:group": [0, 1, 2]})
    before, after = first.diff(wider).tensors["a.weight"]
    assert before == first.shape("a.weight") and after == wider.shape("a.weight")


def test_plans_of_different_models_are_not_compared(pruned):
    with pytest.raises(PlanError, match="different architectures"):
        pruned("plain")[1].diff(pruned("lstm")[1])


class Split(nn.Module):
    """Its two halves can be pruned to different widths, which chunk cannot say."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x):
        u, v = self.a(x).chunk(2, -1)
        return self.b(u.relu()) + self.c(v)


def test_a_mended_model_is_pruned_again_and_both_plans_become_one(tmp_path):
    model, x = Split(), torch.randn(3, 8)

    def first_units(graph, *counts):
        classes = zip(graph.free.values(), counts, strict=True)
        return {c.name: torch.arange(n) for c, n in classes}

    first_graph = trace(model, x)
    first = Plan.of(first_graph, first_units(first_graph, 9, 5)).prepared()
    small = first.apply(model)
    assert [e.function for e in first.edits] == ["chunk"]
    second_graph = trace(small, x)
    second = Plan.of(second_graph, first_units(second_graph, 6, 3)).prepared()
    smaller = second.apply(small)
    assert second.verify(small, smaller).ok
    both = first.then(second)
    assert torch.equal(both.apply(model)(x), smaller(x))
    save(tmp_path / "m", smaller, both)
    assert torch.equal(load(Split, tmp_path / "m")(x), smaller(x))


@pytest.mark.parametrize("name", ["branches", "plain", "lstm", "llama", "gpt2"])
def test_pruning_twice_saves_as_one_plan_of_the_original(name, pruned, tmp_path):
    _, first, small = pruned(name)
    graph = trace(small, inputs(name))
    second = Plan.of(graph, halved(graph, seed=3)).prepared()
    smaller = second.apply(small)
    both = first.then(second)
    save(tmp_path / "m", smaller, both)
    loaded = load(lambda: build(name, 1), tmp_path / "m")
    assert torch.equal(output(loaded, inputs(name)), output(smaller, inputs(name)))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in small.parameters())


def test_attention_is_pruned_twice():
    """The second time its widths are its own, and its softmax scale still that of the dense one."""
    model, x = build("encoder"), inputs("encoder")
    graph = trace(model, x)
    first = Plan.of(graph, halved(graph, kinds=("head_dim",))).prepared()
    small = first.apply(model)
    again = trace(small, x)
    second = Plan.of(again, halved(again, kinds=("head", "head_dim"), seed=1)).prepared()
    assert any("head" in n for n in second.keep)
    smaller = second.apply(small)
    assert second.verify(small, smaller).ok
    assert smaller.layers[0].self_attn.scale == model.layers[0].self_attn.head_dim ** -0.5


def test_what_an_argument_was_is_left_out_where_json_has_no_word_for_it():
    edit = Edit("", "args/1", 0.5, torch.ones(()), "div", 0, ())
    plan = Plan(keep={}, sizes={}, shapes={}, axes={}, edits=(edit,))
    (again,) = decode(encode(plan), "here")[0].edits
    assert (again.value, again.old) == (0.5, None)
