"""Each operator-level network, pruned at random by half, equals its masked original."""

import pytest
import torch
from benchmarks.coverage.cases_operators import cases
from benchmarks.coverage.cell import passed, statistical_ok, try_case
from benchmarks.coverage.page import cause

CASES = {case.name: case for case in cases()}
# Left alone with a note, which is right: TorchScript holds the old shape.
GIVEN_BACK = {"scripted_block"}
# What a network is there for can be that a class is left alone.
LOCKED = {
    "fourier_over_channels": "stem",
    "sorted_channels": "stem",
    "cumulated_channels": "stem",
}


@pytest.mark.parametrize("name", CASES)
def test_pruned_equals_masked(name):
    row = {}
    try_case(CASES[name], row.update)
    assert passed(row), (cause(row), row.get("trace"))
    assert statistical_ok(row), (cause(row), row.get("trace"))
    if name not in GIVEN_BACK:
        assert row["statistical"]["touched"] == row["statistical"]["eligible"], row["statistical"]


@pytest.mark.parametrize("name", LOCKED)
def test_what_mixes_all_channels_keeps_them_all(name):
    import secateur as sec

    model, inputs, _ = CASES[name].build()
    graph = sec.trace(model, inputs)
    names = {c.name for c in graph.classes.values() if c.locked is None}
    assert LOCKED[name] not in names


def test_the_scale_of_fused_attention_is_kept_when_head_dimensions_go():
    import secateur as sec

    model, inputs, _ = CASES["fused_attention_scales_implicitly"].build()
    graph = sec.trace(model, inputs)
    small = sec.Plan.of(
        graph, {"q:head_dim": torch.arange(4), "v:head_dim": torch.arange(5)}
    ).apply(model)
    assert (small.q.out_features, small.v.out_features) == (4 * 4, 4 * 5)

    with torch.no_grad():  # the formula written out, with the dense head width 8
        x = small.embed(inputs[0]).relu()
        q, k, v = (p(x).unflatten(-1, (4, -1)).transpose(1, 2) for p in (small.q, small.k, small.v))
        future = torch.ones(9, 9).triu(1).bool()
        scores = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(future, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        expected = small.head(small.out(mixed).mean(1))
        torch.testing.assert_close(small(*inputs), expected, rtol=1e-4, atol=1e-5)
