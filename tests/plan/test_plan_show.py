"""A printed plan says what goes."""

import torch
from torch import nn

from secateur.graph import trace
from secateur.plan import Plan


def test_every_class_that_loses_units_has_a_row_with_true_counts() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    plan = Plan.of(trace(net, torch.randn(2, 4)), {"0": torch.arange(5), "2": torch.arange(6)})
    shown = str(plan).splitlines()
    kept = 5 * 4 + 5 + 6 * 5 + 6 + 2 * 6 + 2
    assert shown[0].startswith(f"plan: {sum(p.numel() for p in net.parameters())} -> {kept} ")
    assert [row.split() for row in shown[2:]] == [["0", "8", "5", "3"]]


def test_a_plan_that_removes_nothing_says_so_in_one_line() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert len(str(Plan.of(trace(net, torch.randn(2, 4)), {})).splitlines()) == 1
