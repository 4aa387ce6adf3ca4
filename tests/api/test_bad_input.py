"""Whatever is wrong with the input: one clear error, and a model that is bit for bit as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sec
from secateur.errors import BudgetError, ConfigError, DataError, SecateurError, TraceError

EMPTY: list[Any] = []
CASES: list[tuple[dict[str, Any], type[SecateurError], str]] = [
    ({"amount": 1.0}, ConfigError, r"amount=1.0 must be in \[0, 1\)"),
    ({"amount": -0.1}, ConfigError, r"amount=-0.1"),
    ({"amount": float("nan")}, ConfigError, "nan"),
    ({"amount": "half"}, ConfigError, "half"),
    ({"amount": None}, ConfigError, "either amount=.*or keep="),
    ({"keep": {"macs": 0.5}}, ConfigError, "either amount=.*or keep="),
    ({"amount": None, "keep": {"mac": 0.5}}, ConfigError, "did you mean 'macs'"),
    ({"amount": None, "keep": {"macs": 0}}, ConfigError, r"keep\['macs'\]=0"),
    ({"amount": None, "keep": {"params": 0.0001}}, BudgetError, "cannot be met.*%"),
    ({"criterion": "tailor"}, ConfigError, "did you mean 'taylor'"),
    ({"criterion": ("lp", {"q": 3})}, ConfigError, "option of criterion lp"),
    ({"criterion": "taylor"}, DataError, "pass data="),
    ({"criterion": "taylor", "data": EMPTY}, DataError, "no batch"),
    ({"scope": "globall"}, ConfigError, "did you mean 'global'"),
    ({"schedule": "cubik", "steps": 2}, ConfigError, "did you mean 'cubic'"),
    ({"schedule": "linear", "steps": 0}, ConfigError, "steps=0"),
    ({"schedule": "linear", "steps": 2.5}, ConfigError, "steps=2.5"),
    ({"steps": 3}, ConfigError, "one-shot"),
    ({"schedule": "linear", "fibred": True}, ConfigError, "fibred=True is for one step"),
    ({"schedule": "linear", "amount": 2}, ConfigError, "fraction"),
    ({"recovery": "finetune"}, ConfigError, "did you mean 'fine-tune'"),
    ({"recovery": ("fine-tune", {"epoch": 1})}, ConfigError, "did you mean 'epochs'"),
    ({"recovery": 3}, ConfigError, "heal"),
    ({"recovery": "fine-tune"}, DataError, "needs data"),
    ({"recovery": "fine-tune", "data": EMPTY}, DataError, "no batch"),
    ({"ignore": ["*.haed"]}, ConfigError, "ignore"),
    ({"overrides": {"inner": 1.5}}, ConfigError, "1.5"),
    ({"overrides": {"innner": 0.5}}, ConfigError, "did you mean 'inner"),
    ({"kinds": ["chanel"]}, ConfigError, "did you mean 'channel'"),
    ({"ignored": ["head"]}, ConfigError, "did you mean 'ignore'"),
    ({"round_to": 0}, ConfigError, "round_to=0"),
    ({"measure": {"repeats": 1}, "recovery": ["bn"]}, ConfigError, "repeats=1"),
    ({"measure": {"repeat": 1}}, ConfigError, "did you mean 'repeats'"),
    ({"evaluate": "accuracy"}, ConfigError, "evaluate"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), CASES, ids=[str(c[0]) for c in CASES])
def test_bad_arguments(
    wrong: dict[str, Any],
    error: type[SecateurError],
    message: str,
    net: nn.Module,
    inputs: Tensor,
    snapshot: Any,
) -> None:
    net.train()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        sec.prune(net, inputs, **{"amount": 0.4, "progress": False, **wrong})
    assert snapshot(net) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    value: float, net: nn.Module, inputs: Tensor, snapshot: Any
) -> None:
    with torch.no_grad():
        net.inner.weight[3, 2, 1, 1] = value
    before = snapshot(net)
    with pytest.raises(DataError, match=r"inner\.weight.*NaN"):
        sec.prune(net, inputs, amount=0.4, progress=False)
    assert snapshot(net) == before


def test_an_empty_loader(net: nn.Module, inputs: Tensor, digits: Any, snapshot: Any) -> None:
    small = TensorDataset(digits[0][:3], digits[1][:3])
    loader = DataLoader(small, batch_size=8, drop_last=True)
    before = snapshot(net)
    with pytest.raises(DataError, match=r"no batch.*drop_last"):
        sec.prune(net, inputs, amount=0.4, data=loader, recovery="bn", progress=False)
    assert snapshot(net) == before


def test_an_iterator_that_would_be_used_up(net: nn.Module, inputs: Tensor, snapshot: Any) -> None:
    seen = []

    def batches() -> Any:
        seen.append(1)
        yield inputs, torch.zeros(4, dtype=torch.long)

    before = snapshot(net)
    with pytest.raises(DataError, match="only once"):
        sec.prune(
            net, inputs, amount=0.4, criterion="taylor", data=batches(), recovery="bn",
            progress=False,
        )  # fmt: skip
    assert snapshot(net) == before and not seen


def test_inputs_of_the_wrong_shape(net: nn.Module, snapshot: Any) -> None:
    before = snapshot(net)
    with pytest.raises(TraceError, match=r"stem.*shapes|shapes.*stem"):
        sec.prune(net, torch.zeros(2, 3, 8, 8), amount=0.4, progress=False)
    assert snapshot(net) == before


def test_batches_that_do_not_fit_the_model(net: nn.Module, inputs: Tensor, snapshot: Any) -> None:
    data = [(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))]
    before = snapshot(net)
    for how in ({"criterion": "taylor"}, {"recovery": ("fine-tune", {"steps": 1})}):
        with pytest.raises(DataError, match=r"2, 5"):
            sec.prune(net, inputs, amount=0.4, data=data, progress=False, measure=False, **how)
        assert snapshot(net) == before


def test_evaluate_that_fails_leaves_the_model(
    net: nn.Module, inputs: Tensor, snapshot: Any
) -> None:
    def evaluate(model: nn.Module) -> float:
        raise RuntimeError("no such file: labels.csv")

    net.train()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match=r"labels\.csv"):
        sec.prune(net, inputs, amount=0.4, evaluate=evaluate, progress=False)
    assert snapshot(net) == before


@pytest.mark.parametrize("model", ["resnet18", None, nn.Linear])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(TraceError, match=r"torch\.nn\.Module"):
        sec.prune(model, torch.zeros(1), amount=0.5)


def test_nothing_to_prune(snapshot: Any) -> None:
    net = nn.Linear(4, 2)
    before = snapshot(net)
    with pytest.raises(sec.errors.PlanError, match="nothing can be pruned"):
        sec.prune(net, torch.zeros(1, 4), amount=0.5)
    assert snapshot(net) == before
