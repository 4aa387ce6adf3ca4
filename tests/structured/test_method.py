"""``sec.prune(method=...)``: a method settles what the user says nothing about, no more."""

from typing import Any

import pytest
import torch
from tiny import batches, llama, tokens
from torch import nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import ConfigError, PlanError
from secateur.methods.registry import Method

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}


def hidden() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def test_a_method_is_its_parts_said_one_by_one() -> None:
    model = llama(2)
    by_name = sec.prune(model, INPUTS, method="flap", amount=0.3, data=batches(), **QUIET)
    by_parts = sec.prune(
        model,
        INPUTS,
        amount=0.3,
        criterion="fluctuation",
        scope="global",
        kinds=["head", "channel"],
        recovery="bias",
        data=batches(),
        **QUIET,
    )
    assert by_name.plan.removed == by_parts.plan.removed
    assert_close(by_name.model.state_dict(), by_parts.model.state_dict(), rtol=0, atol=0)
    assert by_name.report.settings["method"] == "flap"


def test_what_the_user_says_wins() -> None:
    model = llama(2)
    how: dict[str, Any] = {"data": batches(), "criterion": "l1", "scope": "uniform", **QUIET}
    result = sec.prune(model, INPUTS, method="flap", recovery="none", kinds=["channel"], **how)
    plain = sec.prune(model, INPUTS, amount=0.2, kinds=["channel"], **how)
    assert result.plan.removed == plain.plan.removed  # and 0.2 is the method's own amount
    assert_close(result.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)


def test_a_budget_takes_the_place_of_the_methods_amount() -> None:
    model = llama(2)
    before = sum(p.numel() for p in model.parameters())
    result = sec.prune(model, INPUTS, method="wanda_sp", keep={"params": 0.85}, data=batches(),
                       **QUIET)  # fmt: skip
    assert sum(p.numel() for p in result.model.parameters()) / before == pytest.approx(
        0.85, abs=0.02
    )


def test_options_and_methods_of_ones_own() -> None:
    net, x = hidden(), torch.randn(4, 8)
    own = Method(0.5, criterion=("lp", {"p": 3}), granularity="channel", recovery=None)
    result = sec.prune(net, x, method=own, **QUIET)
    plain = sec.prune(net, x, amount=0.5, criterion=("lp", {"p": 3}), **QUIET)
    assert result.plan.removed == plain.plan.removed == {"0": 8, "2": 6}
    bare = sec.prune(
        net, x, method=("flap", {"compensate": False}), data=[(x,)], kinds=["channel"], **QUIET
    )
    assert torch.equal(bare.model[4].bias, net[4].bias)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("flop", "did you mean 'flap'"),
        ("sparsegpt", "for sec.sparsify"),
        ("rigl", "for sec.attach"),
        (("flap", {"scop": "global"}), "did you mean 'scope'"),
        (3, "a method is a name"),
    ],
)
def test_methods_that_do_not_remove_units_are_refused(method: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sec.prune(hidden(), torch.randn(4, 8), method=method, amount=0.5, **QUIET)


def test_a_model_without_the_kinds_that_a_method_knows_is_told() -> None:
    method = Method(0.5, criterion="l2", granularity="channel", kinds=("head",), name="heads")
    with pytest.raises(PlanError, match="method heads removes units of kind head"):
        sec.prune(nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2)), torch.randn(2, 3),
                  method=method, **QUIET)  # fmt: skip
