"""Sensitivity and Pareto against the same thing done by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import ConfigError, DataError

Accuracy = Callable[[nn.Module], float]


def test_sensitivity_equals_zeroing_by_hand(
    net: nn.Module, inputs: Tensor, accuracy: Accuracy, snapshot: Any
) -> None:
    net.train()
    before = snapshot(net)
    curves = {c.name: c.points for c in sec.sensitivity(net, inputs, accuracy, amounts=[0.5, 0.75])}
    assert snapshot(net) == before
    assert set(curves) == {"stem", "inner", "down"}
    plain = copy.deepcopy(net).eval()
    scores = plain.inner.weight.square().sum((1, 2, 3)) + plain.outer.weight.square().sum((0, 2, 3))
    expected = [(0.0, accuracy(plain))]
    for count in (6, 9):
        masked = copy.deepcopy(plain)
        gone = scores.argsort()[:count]
        with torch.no_grad():
            masked.inner.weight[gone] = 0
            masked.inner.bias[gone] = 0
            masked.outer.weight[:, gone] = 0
        expected.append((count / 12, accuracy(masked)))
    assert torch.tensor(curves["inner"]).allclose(torch.tensor(expected))


def test_sensitivity_sorts_by_what_is_lost(
    net: nn.Module, inputs: Tensor, accuracy: Accuracy
) -> None:
    curves = sec.sensitivity(net, inputs, accuracy, amounts=[0.9], kinds=["channel"])
    losses = [abs(c.points[0][1] - c.points[-1][1]) for c in curves]
    assert losses == sorted(losses, reverse=True)
    assert all(c.points[-1][0] < 1 for c in curves)


def test_sensitivity_refuses_nonsense(net: nn.Module, inputs: Tensor, snapshot: Any) -> None:
    before = snapshot(net)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        sec.sensitivity(net, inputs, lambda m: 0.0, amounts=[1.0])
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        sec.sensitivity(net, inputs, lambda m: 0.0, criterion="tailor")
    with pytest.raises(DataError, match="gave nan with the dense model"):
        sec.sensitivity(net, inputs, lambda m: float("nan"))
    assert snapshot(net) == before


def test_sensitivity_restores_the_model_when_evaluate_fails(
    net: nn.Module, inputs: Tensor, snapshot: Any
) -> None:
    calls = []

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of patience")
        return 0.5

    before = snapshot(net)
    with pytest.raises(RuntimeError, match="patience"):
        sec.sensitivity(net, inputs, evaluate)
    assert snapshot(net) == before


def test_pareto_is_one_run_a_ratio(net: nn.Module, inputs: Tensor, accuracy: Accuracy) -> None:
    how: dict[str, Any] = {"evaluate": accuracy, "measure": {"repeats": 2}, "progress": False}
    results = sec.pareto(net, inputs, amounts=[0.2, 0.5], keeps=[{"macs": 0.5}], **how)
    points = results[0].report.pareto
    assert [p.ratio for p in points] == [0.2, 0.5, 0.5]
    assert [p.accuracy for p in points] == [accuracy(r.model) for r in results]
    assert [p.speedup for p in points] == [
        r.measurement.against.speedup.ratio for r in results  # type: ignore[union-attr]
    ]  # fmt: skip
    for k, result in enumerate(results):
        assert [p.chosen for p in result.report.pareto] == [j == k for j in range(3)]
    alone = sec.prune(net, inputs, amount=0.5, **how)
    assert alone.plan.removed == results[1].plan.removed


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "amounts="),
        ({"amounts": [0.5]}, "evaluate="),
        ({"amounts": [0.5], "evaluate": len, "measure": False}, "measure="),
        ({"amounts": [0.5], "evaluate": len, "amount": 0.5}, "amounts="),
        ({"amounts": [0.5], "evaluate": len, "inplace": True}, "inplace"),
    ],
)
def test_pareto_refuses_what_cannot_be_compared(
    how: dict[str, Any], message: str, net: nn.Module, inputs: Tensor
) -> None:
    with pytest.raises(ConfigError, match=message):
        sec.pareto(net, inputs, **how)
