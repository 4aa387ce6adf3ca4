"""Ordinary mistakes are one clear error each, and none is passed over in silence."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import BudgetError, ConfigError, DataError, StoreError, TraceError

X = torch.randn(5, 6)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    )


def prune(model: nn.Module, x: Any = X, **how: Any) -> None:
    sec.prune(model, x, **{"amount": 0.5, "measure": False, **how})


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("limits", [{"min_width": 100}, {"round_to": 100}, {"round_to": 16}])
def test_limits_under_which_the_amount_cannot_go(scope: str, limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"of 28 units .* cannot be met"):
        sec.plan(sec.trace(net(), X), amount=0.5, scope=scope, **limits)


def test_limits_that_hold_some_classes_back_are_noted() -> None:
    graph = sec.trace(net(), X)
    plan = sec.plan(graph, amount=0.5, min_width=11)
    assert plan.removed == {"0": 5, "2": 1}
    assert any("6 of 28 units" in note for note in plan.notes)
    with pytest.raises(BudgetError, match="cannot be met"):
        sec.plan(graph, amount=0.5, min_width=11, scope="global")


def test_rounding_to_the_nearest_width_is_no_shortage() -> None:
    for amount, step in ((0.1, None), (0.3, 4), (0.5, 8)):
        assert sec.plan(sec.trace(net(), X), amount=amount, round_to=step).notes == ()


def test_an_amount_of_less_than_a_unit_is_noted() -> None:
    notes = sec.prune(net(), X, amount=0.01, measure=False).plan.notes
    assert any("nothing was removed: amount=0.01" in note and "16 units" in note for note in notes)
    for amount in (0.0, 0.25):
        assert sec.prune(net(), X, amount=amount, measure=False).plan.notes == ()


@pytest.mark.parametrize("x", [X.double(), X.long()])
def test_inputs_of_a_type_that_the_model_does_not_take(x: torch.Tensor) -> None:
    with pytest.raises(TraceError, match=r"does not run on the example inputs.*dtype"):
        prune(net(), x)


def test_what_is_compiled_is_named() -> None:
    model = net()
    model.compile(backend="eager")
    with pytest.raises(TraceError, match="Sequential is compiled"):
        prune(model)
    model = net()
    model[2] = torch.compile(model[2], backend="eager")
    with pytest.raises(TraceError, match="2 is compiled"):
        prune(model)


def test_what_cannot_be_copied_is_named() -> None:
    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TraceError, match=r"cannot be copied.*lock"):
        prune(model)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sec.plan(net(), amount=0.5), r"takes a graph, got Sequential: .*sec\.trace\("),  # type: ignore[arg-type]
        (lambda: sec.plan(graph=None, amount=0.5), "takes a graph, got NoneType"),  # type: ignore[arg-type]
        (lambda: sec.measure(net, X), "model= is a function"),  # type: ignore[arg-type]
        (lambda: sec.measure(None, X), "model= is a NoneType"),  # type: ignore[arg-type]
        (lambda: sec.measure(net(), X, against="a"), "against= is a str"),  # type: ignore[arg-type]
        (lambda: sec.sensitivity(net(), X, len, amounts=0.5), r"amounts=0\.5: give fractions"),  # type: ignore[arg-type]
        (lambda: sec.sensitivity(net(), X, len, amounts=[0.5, "a"]), "give fractions"),  # type: ignore[arg-type, list-item]
        (lambda: sec.sensitivity(net(), X, None), "evaluate=None: give a function"),  # type: ignore[arg-type]
        (lambda: sec.sensitivity(net(), X, lambda _: None), "must return a number"),  # type: ignore[arg-type, return-value]
    ],
)  # fmt: skip
def test_a_call_with_something_else_says_what_to_give(call: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call()


def test_what_is_saved_and_where_are_checked(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = sec.prune(net(), X, amount=0.5, measure=False)
    model, plan = result.model, result.plan
    zeros = sec.sparsify(net(), "magnitude", amount=0.5)
    for given in (("d", None, None), ("d", model, None), ("d", None, plan), (model, plan, "d")):
        with pytest.raises(StoreError, match="takes the folder, the pruned model and its plan"):
            sec.save(*given)  # type: ignore[arg-type]
    for write in (result.save, result.html, plan.save, zeros.save, zeros.masks.save):
        with pytest.raises(StoreError, match="NoneType is no path: give the name of a f"):
            write(None)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_wrong_kind() -> None:
    with pytest.raises(DataError, match="one tensor"):
        prune(net(), data=X, criterion="activation")
    with pytest.raises(ConfigError, match=r"overrides=.*must be a dict"):
        prune(net(), overrides=["0"])
