"""Rules that a user registers: for which operators, and what is said of mistakes in them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.graph import rules


@torch.library.custom_op("secateur_rules::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(2 * x)


@swish.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.ops.secateur_rules.swish(self.a(x)))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    rules._load()
    before = dict(rules._RULES)
    yield
    rules._RULES.clear()
    rules._RULES.update(before)
    rules.find_rule.cache_clear()


def same(op: Any) -> Any:
    return op.axes(op.arg("x"))


@pytest.mark.parametrize("operator", [
    swish, torch.ops.secateur_rules.swish, torch.ops.secateur_rules.swish.default,
])  # fmt: skip
def test_an_operator_is_named_by_whatever_stands_for_it(operator: Any) -> None:
    sec.rule(operator)(same)
    graph = sec.trace(Net(), torch.randn(2, 4))
    assert not graph.unknown
    assert sec.plan(graph, amount=0.5).removed == {"a": 3}


@pytest.mark.parametrize("operator", ["secateur_rules::swish", torch.tanh, same, nn.ReLU()])
def test_what_is_no_operator_is_refused(operator: Any) -> None:
    with pytest.raises(sec.errors.ConfigError, match=r"write @rule\(torch.ops.mylib.myop\)"):
        sec.rule(operator)


def test_a_rule_of_nothing_or_that_is_no_function_is_refused() -> None:
    with pytest.raises(sec.errors.ConfigError, match="no operator"):
        sec.rule()
    with pytest.raises(sec.errors.ConfigError, match="a function of an op, got 3"):
        sec.rule(swish)(3)


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda op: op.axes(op.arg("y")), "raised AttributeError.*was given x"),
    (lambda op: op.axes(op.arg("x"))[:1], r"gives axes of \(2,\), its output is \(2, 6\)"),
    (lambda op: "axes", r"gives axes of \('a', .*its output is \(2, 6\)"),
])  # fmt: skip
def test_a_mistake_in_a_rule_is_told_of_the_rule_not_of_the_model(wrong: Any, said: str) -> None:
    sec.rule(swish)(wrong)
    with pytest.raises(sec.errors.TraceError, match="the rule of secateur_rules.swish.*" + said):
        sec.trace(Net(), torch.randn(2, 4))
