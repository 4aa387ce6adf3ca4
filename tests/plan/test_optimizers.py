"""What an optimizer keeps goes along with its parameters, or it is said that it cannot."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import PlanError

X = torch.randn(5, 6)


def trained(kind: Any) -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = kind(model.parameters(), lr=0.01)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, optimizer, closure


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adafactor])
def test_slots_are_narrowed_where_they_have_the_axis(kind: Any) -> None:
    model, optimizer, closure = trained(kind)
    plan = sec.plan(sec.trace(model, X), amount=0.5)
    before = {p: dict(slots) for p, slots in optimizer.state.items()}
    plan.apply_optimizer(plan.apply(model, inplace=True), optimizer)
    kept = plan.keep["0"].nonzero().flatten()
    first, bias, second = model[0].weight, model[0].bias, model[2].weight
    for p, axis in ((first, 0), (bias, 0), (second, 1)):
        for key, old in before[p].items():
            has = isinstance(old, torch.Tensor) and old.dim() > axis and old.shape[axis] == 16
            new = optimizer.state[p][key]
            assert torch.equal(new, old.index_select(axis, kept) if has else old)
    optimizer.step(closure)


def test_a_slot_without_an_axis_is_narrowed_and_one_that_could_be_either_is_refused() -> None:
    class Rows(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["row"] = p.detach().reshape(len(p), -1).sum(1)
            return loss

    model, optimizer, _ = trained(Rows)
    plan = sec.plan(sec.trace(model, X), amount=0.5)
    rows = optimizer.state[model[0].weight]["row"]
    plan.apply_optimizer(plan.apply(model, inplace=True), optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["row"], rows[plan.keep["0"]])
    square = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    other = Rows(square.parameters(), lr=0.01)
    other.state[square[0].weight]["row"] = torch.ones(6)
    plan = sec.plan(sec.trace(square, X), amount=0.5)
    with pytest.raises(PlanError, match=r"keeps 'row' of 0.weight.*make a new optimizer"):
        plan.apply_optimizer(plan.apply(square, inplace=True), other)


def test_what_cannot_be_narrowed_or_is_of_another_model_is_one_clear_error() -> None:
    model, optimizer, _ = trained(torch.optim.LBFGS)
    plan = sec.plan(sec.trace(model, X), amount=0.5)
    with pytest.raises(PlanError, match=r"LBFGS keeps .* make a new optimizer"):
        plan.apply_optimizer(plan.apply(model, inplace=True), optimizer)
    model, optimizer, _ = trained(torch.optim.Adam)
    plan = sec.plan(sec.trace(model, X), amount=0.5)
    with pytest.raises(PlanError, match=r"holds no parameter .* inplace=True"):
        plan.apply_optimizer(plan.apply(model), optimizer)


def test_the_dense_model_and_another_one_are_refused_and_momenta_stay() -> None:
    model, optimizer, _ = trained(torch.optim.Adam)
    plan = sec.plan(sec.trace(model, X), amount=0.5)
    before = {p: dict(slots) for p, slots in optimizer.state.items()}
    with pytest.raises(PlanError, match=r"0.weight has shape \(16, 6\).*makes \(8, 6\)"):
        plan.apply_optimizer(model, optimizer)
    with pytest.raises(PlanError, match="no such parameter"):
        plan.apply_optimizer(nn.ModuleDict({"module": model}), optimizer)
    for p, slots in before.items():
        assert all(optimizer.state[p][key] is value for key, value in slots.items())
    plan.apply_optimizer(plan.apply(model, inplace=True), optimizer)


def test_memory_formats_stay() -> None:
    net: nn.Module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    x = torch.randn(2, 3, 9, 9)
    for form in (torch.channels_last, torch.contiguous_format):
        net = net.to(memory_format=form)  # type: ignore[call-overload]
        small = sec.plan(sec.trace(net, x), amount=0.5).apply()
        for k in (0, 2):
            assert small[k].weight.is_contiguous(memory_format=form)
