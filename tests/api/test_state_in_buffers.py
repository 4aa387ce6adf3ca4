"""Models that keep state in buffers: a forward of the library leaves none of it behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.measure.calling import evaluating

X, Y = torch.randn(8, 6), torch.arange(8) % 4
DATA = [(X, Y)] * 2
QUIET: dict[str, Any] = {"measure": False, "progress": False}


class Stateful(nn.Module):
    """Counts its calls in place and beside the graph, replaces one buffer and makes another."""

    kept: Tensor
    calls: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()), persistent=False)
        self.made_for = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.calls.clone()
        if self.made_for != len(x):
            self.register_buffer("kept", torch.ones(len(x), 1), persistent=False)
            self.made_for = len(x)
        return self.second(self.norm(self.first(x)).relu()) * self.kept


def state(model: nn.Module) -> dict[str, Any]:
    values = {n: t.tolist() for n, t in (*model.named_parameters(), *model.named_buffers())}
    return {**values, "buffers": [id(t) for t in model.buffers()], "for": model.made_for}


FORWARDS: dict[str, Callable[[nn.Module], object]] = {
    "trace, plan, verify": lambda m: sec.plan(sec.trace(m, X), amount=0.5).verify(m),
    "prune": lambda m: sec.prune(m, X, amount=0.5, data=DATA, criterion="taylor", **QUIET),
    "steps": lambda m: sec.prune(m, X, amount=0.5, schedule="linear", steps=2, **QUIET),
    "measure": lambda m: sec.measure(m, X, repeats=2),
    "sensitivity": lambda m: sec.sensitivity(m, X, lambda m: float(m(X).sum()), amounts=[0.5]),
    "sparsify": lambda m: sec.sparsify(m, "wanda", data=DATA, amount=0.5, inplace=False),
    "distil": lambda m: sec.prune(m, X, amount=0.5, data=DATA, recovery="distil", **QUIET),
}


@pytest.mark.parametrize("what", FORWARDS)
def test_buffers_of_the_users_model_are_as_they_were(what: str) -> None:
    model = Stateful()
    before = state(model)
    FORWARDS[what](model)
    assert state(model) == before
    model(X[:3])  # its own bookkeeping still agrees with its buffers
    assert (model.calls.item(), len(model.kept)) == (1, 3)


def test_a_pruned_model_has_counted_nothing_either() -> None:
    assert sec.prune(Stateful(), X, amount=0.5, **QUIET).model.calls.item() == 0


def test_an_unchanged_buffer_is_not_written_between_forward_and_backward() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()
    loss = cross_entropy(model(X), Y)  # its gradient needs the running variance
    with evaluating(model):
        model(X)
    loss.backward()


def test_recalibration_and_training_still_change_what_they_are_meant_to() -> None:
    model = Stateful()
    for recovery in ("bn", "fine-tune"):
        made = sec.prune(model, X, amount=0.5, data=DATA, recovery=recovery, **QUIET).model
        assert made.norm.running_mean.abs().sum() > 0
        assert made.norm.num_batches_tracked.item() == len(DATA)
