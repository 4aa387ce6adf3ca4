"""A criterion that knows nothing of some layers scores the others."""

import pytest
import torch
from torch import nn

import secateur as sec


@pytest.mark.parametrize("criterion", ["lasso", "thinet"])
def test_layers_without_the_statistic_are_left_out(criterion):
    conv = nn.Conv2d(3, 8, 3, padding="same")
    unknown = nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(conv, nn.ReLU(), unknown, nn.Flatten(), nn.Linear(6 * 16, 5))
    x = torch.randn(2, 3, 4, 4)
    plan = sec.plan(sec.trace(model, x), amount=0.5, criterion=criterion, data=[(x,)])
    assert plan.removed == {"2": 3}
