"""Mistakes that a newcomer made: each gets one line that says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import ConfigError, StoreError, TraceError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("wrap", "said"),
    [(torch.compile, "_orig_mod"), (nn.DataParallel, "model.module"), (torch.jit.script, "Script")],
    ids=["compile", "data-parallel", "script"],
)
def test_a_wrapped_model_is_refused_with_what_to_pass(wrap, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        sec.trace(wrap(net()), torch.randn(2, 4))


@pytest.mark.parametrize("keep", [0.5, "macs"])
def test_a_budget_must_be_named(keep: object) -> None:
    with pytest.raises(ConfigError, match="macs"):
        sec.plan(sec.trace(net(), torch.randn(2, 4)), keep=keep)


def test_layers_are_named_by_text() -> None:
    model = net()
    with pytest.raises(ConfigError, match="by text"):
        sec.plan(sec.trace(model, torch.randn(2, 4)), amount=0.5, ignore=[model[0]])


def test_load_says_when_its_arguments_are_swapped() -> None:
    with pytest.raises(StoreError, match="first and the folder second"):
        sec.load("out", net())
