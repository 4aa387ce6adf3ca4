"""Mistakes that a newcomer made: each gets one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.weight_norm import weight_norm

import secateur as sec
from secateur.errors import BudgetError, ConfigError, DataError, StoreError, TraceError


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


def test_load_says_that_a_folder_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the folder .*nowhere does not exist"):
        sec.load(net, tmp_path / "nowhere")


@pytest.mark.parametrize("metric", ["params", "macs", "memory"])
@pytest.mark.parametrize("width", [7, 11, 29])
def test_the_budget_that_is_advised_can_be_met(metric: str, width: int) -> None:
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    graph = sec.trace(model, torch.randn(2, 4))
    with pytest.raises(BudgetError) as error:
        sec.plan(graph, keep={metric: 1e-4})
    found = re.search(r"ask for keep >= ([\d.]+)", str(error.value))
    assert found
    advised = float(found[1])
    assert sec.plan(graph, keep={metric: advised}).removed == {"0": width - 1}
    with pytest.raises(BudgetError):
        sec.plan(graph, keep={metric: advised * 0.97})


def masked_by_torch(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (masked_by_torch, lambda layer: prune.remove(layer, "weight")),
        (weight_norm, nn.utils.remove_weight_norm),
    ],
    ids=["torch-prune", "weight-norm"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_hook_computes_is_named_with_what_makes_it_plain(
    change: Callable[[nn.Module], object], undo: Callable[[nn.Module], object]
) -> None:
    model = net()
    change(model[2])
    with pytest.raises(TraceError, match=r"2\.weight is computed anew") as error:
        sec.trace(model, torch.randn(2, 4))
    assert "prune.remove(module, 'weight')" in str(error.value)
    assert "remove_weight_norm" in str(error.value)
    undo(model[2])
    assert sec.trace(model, torch.randn(2, 4)).free


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrized_weight_is_traced(kind: str) -> None:
    model = net()
    getattr(parametrizations, kind)(model[0])
    assert sec.trace(model, torch.randn(2, 4)).classes


@pytest.mark.parametrize("given", [None, "93 %", torch.zeros(2), {"accuracy": 0.5}])
def test_an_evaluate_that_returns_no_number_is_told_so(given: object) -> None:
    with pytest.raises(ConfigError, match="must return a number, such as the accuracy"):
        sec.prune(net(), torch.randn(2, 4), amount=0.5, evaluate=lambda _: given, measure=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"criterion": "taylor"}, {"recovery": "fine-tune"}], ids=["criterion", "recovery"]
)
def test_missing_data_are_asked_for_in_python_and_on_the_command_line(
    options: dict[str, str],
) -> None:
    with pytest.raises(DataError, match=r"NoneType.*--data FILE\.py:loaders"):
        sec.prune(net(), torch.randn(2, 4), amount=0.5, measure=False, **options)


@pytest.mark.parametrize("value", [3, ["a"], ("l2", {"x": 1}), {"a": 1}], ids=str)
@pytest.mark.parametrize(
    "name", ["criterion", "scope", "recovery", "schedule", "reduction", "normalizer", "kinds"]
)
def test_a_choice_of_another_type_is_a_mistake_like_any_other(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name.removesuffix("s")):
        sec.prune(net(), torch.randn(2, 4), amount=0.5, progress=False, **{name: value})


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ("criterion lp: p should be a number, not 'one'", {"criterion": ("lp", {"p": "one"})}),
        (
            "recovery fine-tune: steps should be a whole number or none, not 'ten'",
            {"recovery": ("fine-tune", {"steps": "ten"})},
        ),
        (
            "recovery distil: base: lr should be a number or none, not 'fast'",
            {"recovery": ("distil", {"base": {"lr": "fast"}})},
        ),
        ("overrides\\['0'\\]=None must be in", {"overrides": {"0": None}}),
    ],
)
def test_an_option_of_another_type_is_named(said: str, how: dict[str, object]) -> None:
    data = [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(ConfigError, match=said):
        sec.prune(net(), torch.randn(2, 4), amount=0.5, data=data, progress=False, **how)


def test_an_option_of_a_method_of_another_type_is_named() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match="method rigl: every should be a whole number, not 'now'"):
        sec.attach(model, optimizer, "rigl", amount=0.5, steps=4, every="now")


@pytest.mark.parametrize("metric", ["mAP", {"name": "mAP"}, 3])
def test_a_metric_of_another_kind_is_refused_before_the_work(metric: object) -> None:
    with pytest.raises(ConfigError, match=r"sec\.report\.Metric\(name="):
        sec.prune(net(), torch.randn(2, 4), amount=0.5, evaluate=lambda m: 1.0, metric=metric)
