"""Two plans one after the other are one plan; optimizer state goes along."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import PlanError
from secateur.plan.compose import correspondence, scattered


class Attention(nn.Module):
    """Heads, their inner width and a residual width, in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)
        self.up = nn.Linear(24, 40)
        self.down = nn.Linear(40, 24)
        self.head = nn.Linear(24, 5)
        self.heads = 6

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, -1))
        return self.head(x + self.down(self.up(x).relu()))


class Cat(nn.Module):
    """Two branches joined, then a grouped convolution and a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.grouped(torch.cat([self.a(x).relu(), self.b(x)], 1)).relu())


CASES = {
    "attention": (Attention, lambda: torch.randn(2, 7, 24)),
    "cat": (Cat, lambda: torch.randn(2, 3, 8, 8)),
    "lstm": (
        lambda: nn.Sequential(nn.Linear(6, 10), nn.LSTM(10, 12, 2, batch_first=True)),
        lambda: torch.randn(2, 5, 6),
    ),
}


def random_plan(model: nn.Module, x: Any, amount: float, seed: int) -> sec.Plan:
    return sec.plan(sec.trace(model, x), amount=amount, criterion="random", seed=seed)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_then_equals_one_after_the_other(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    build, inputs = CASES[name]
    model, x = build().eval(), inputs()
    first = random_plan(model, x, 0.3, seed)
    small = first.apply(model)
    second = random_plan(small, x, 0.4, seed + 100)
    smaller = second.apply(small)
    both = first.then(second)
    at_once = both.apply(model)
    assert_close(dict(at_once.state_dict()), dict(smaller.state_dict()), rtol=0, atol=0)
    for one, other in zip(_tensors(at_once(x)), _tensors(smaller(x)), strict=True):
        assert_close(one, other, rtol=0, atol=0)
    assert sum(both.removed.values()) >= sum(first.removed.values())
    assert both.verify(model, at_once).ok


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in _tensors(v)]


def test_units_are_followed_by_their_values() -> None:
    """Mark every unit by its bias: what corresponds must carry the same mark."""
    torch.manual_seed(0)
    model, x = Cat(), torch.randn(2, 3, 8, 8)
    model.grouped = nn.Conv2d(16, 16, 3, padding=1)  # with groups a unit is more than a channel
    with torch.no_grad():
        for conv in (model.a, model.b):
            conv.bias.copy_(torch.randperm(8))
    plan = random_plan(model, x, 0.4, 1)
    small = plan.apply(model)
    pairs = {a: (b, i, j) for a, b, i, j in correspondence(plan, sec.trace(small, x))}
    for name in ("a", "b"):
        theirs, ours, their = pairs[name]
        assert theirs == name
        assert len(ours) == int(plan.keep[name].sum()) if name in plan.keep else 8
        assert_close(model.get_submodule(name).bias[ours], small.get_submodule(name).bias[their])


def test_scores_of_what_is_gone_are_lowest() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4)
    graph = sec.trace(model, x)
    keep = torch.tensor([True, False, True, True, False, True])
    plan = sec.Plan.of(graph, {"0": keep}).prepared()
    here = sec.trace(plan.apply(model), x)
    scores = scattered({"0": torch.tensor([5.0, -3.0, 2.0, 7.0])}, plan, here)["0"]
    assert scores[keep].tolist() == [5.0, -3.0, 2.0, 7.0]
    assert scores[~keep].max() < -3.0


def test_a_plan_of_another_model_cannot_follow() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4)
    first = random_plan(model, x, 0.5, 0)
    with pytest.raises(PlanError, match=r"0\.weight has shape \(3, 4\)"):
        first.then(first)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_state_goes_along(kind: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(8, 4)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    slots = {
        n: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v) and v.dim()}
        for n, p in model.named_parameters()
    }
    plan = sec.plan(sec.trace(model, x), amount=0.5)
    kept = plan.keep["0"].nonzero().flatten()
    plan.apply(model, inplace=True)
    plan.apply_optimizer(model, optimizer)
    for name, parameter in model.named_parameters():
        for key, old in slots[name].items():
            expected = {
                "0.weight": lambda t: t[kept],
                "0.bias": lambda t: t[kept],
                "2.weight": lambda t: t[:, kept],
                "2.bias": lambda t: t,
            }[name](old)
            assert_close(optimizer.state[parameter][key], expected, rtol=0, atol=0)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()  # and training goes on
