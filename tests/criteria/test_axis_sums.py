"""Scores summed block by block are the sums of all scores."""

import torch

from secateur import criteria
from secateur.engine.statistics import Stats
from secateur.granularity import sums


def test_blocks_give_the_sums_of_the_whole(monkeypatch) -> None:
    weight = torch.randn(7, 5, 3)
    whole = weight.double().square()
    naive = {0: whole.sum((1, 2)), 1: whole.sum((0, 2)), 2: whole.sum((0, 1))}
    for block in (1, 20, 10_000):
        monkeypatch.setattr(sums, "_BLOCK", block)
        found = sums.axis_sums(criteria.find("l2"), weight, Stats("w"), [0, 1, 2])
        for axis, expected in naive.items():
            torch.testing.assert_close(found[axis].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_criterion_that_compares_elements_sees_the_whole_weight(monkeypatch) -> None:
    monkeypatch.setattr(sums, "_BLOCK", 2)
    largest = criteria.find(lambda weight, stats: (weight == weight.max()).float())
    found = sums.axis_sums(largest, torch.arange(12.0).view(4, 3), Stats("w"), [0])
    assert found[0].tolist() == [0, 0, 0, 1]


def test_several_classes_along_one_axis_are_summed_apart() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    found = sums.unit_sums(
        values, [torch.tensor([0, 1, -1, 0]), torch.tensor([-1, -1, 2, 0])], [2, 3]
    )
    assert [f.tolist() for f in found] == [[9, 2], [8, 0, 4]]
