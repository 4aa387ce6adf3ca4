"""A pruned model on another path through its forward than the traced one."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.errors import SurgeryError, TraceError
from secateur.plan import Plan


class Scaled(nn.Module):
    """Attention whose scale is read off the width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor, gain: Any = None, fused: bool = False) -> Tensor:
        q = self.q(x)
        if fused:
            return self.o(nn.functional.scaled_dot_product_attention(q, self.k(x), self.v(x)))
        if gain is not None:
            q = q * gain
        a = (q * q.shape[-1] ** -0.5) @ self.k(x).transpose(-2, -1)
        return self.o(a.softmax(-1) @ self.v(x))


class Heads(nn.Module):
    """Attention that reads its head width off the input, with an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        if mask is not None:
            mask = mask.reshape(b, 1, 1, n)
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        a = q @ k.transpose(-2, -1)
        if mask is not None:
            a = a.masked_fill(~mask, float("-inf"))
        return self.o((a.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


X = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module) -> tuple[Plan, nn.Module]:
    plan = sec.plan(sec.trace(model, X), amount=0.5).prepared()
    assert any(e.call is not None for e in plan.edits or ())
    return plan, plan.apply(model)


def equal(plan: Plan, model: nn.Module, small: nn.Module, *args: Any) -> None:
    with torch.no_grad(), sec.masked(model, plan):
        torch.testing.assert_close(small(*args), model(*args))


@pytest.mark.parametrize("gain", [None, 1.0, 20.0])
def test_a_factor_is_corrected_though_another_call_comes_first(gain):
    torch.manual_seed(0)
    model = Scaled().eval()
    equal(*_with(model), X, gain)


def _with(model: nn.Module) -> tuple[Plan, nn.Module, nn.Module]:
    plan, small = pruned(model)
    return plan, model, small


def test_a_path_without_the_corrected_factor_is_an_error_and_not_another_result():
    small = pruned(Scaled().eval())[1]
    with pytest.raises(SurgeryError, match=r"mul should use 0\.2.*takes another path"):
        small(X, None, True)


def test_a_size_is_corrected_though_another_call_comes_first_and_the_batch_is_another():
    torch.manual_seed(0)
    model = Heads().eval()
    plan, small = pruned(model)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    equal(plan, model, small, X, mask)
    equal(plan, model, small, torch.randn(5, 3, 24))


def test_what_was_mended_is_pruned_again_and_read_back(tmp_path):
    torch.manual_seed(0)
    model = Heads().eval()
    _, small = pruned(model)
    plan, smaller = pruned(small)
    equal(plan, small, smaller, X)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json").apply(small)
    torch.testing.assert_close(again(X), smaller(X))


class Chosen(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.m, self.key = nn.ModuleDict({key: Heads()}), key

    def forward(self, x: Tensor) -> Tensor:
        return self.m[self.key](x)


@pytest.mark.parametrize("key", ["<paper___cites___paper>", "a/b", "x->y", "ä"])
def test_modules_of_any_name_are_saved(tmp_path, key):
    plan, _ = pruned(Chosen(key).eval())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").edits == plan.edits


def test_an_encoder_takes_a_padding_mask_after_its_heads_are_narrower():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, pad = torch.randn(2, 7, 32), torch.zeros(2, 7, dtype=torch.bool)
    pad[1, 5:] = True
    plan = sec.plan(sec.trace(model, x), amount=0.5)
    small = plan.apply(model)
    with torch.no_grad(), sec.masked(model, plan):
        wanted = model(x, src_key_padding_mask=pad)
    torch.testing.assert_close(small(x, src_key_padding_mask=pad)[~pad], wanted[~pad])


class Returns(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(6, 16), nn.Linear(16, 4), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.b(self.a(x).relu()))


def test_outputs_in_an_object_keep_their_width():
    model = Returns(lambda t: types.SimpleNamespace(inner=[types.SimpleNamespace(logits=t)]))
    x = torch.randn(5, 6)
    plan = sec.plan(sec.trace(model, x), amount=0.5)
    assert plan.apply()(x).inner[0].logits.shape == (5, 4)
    assert plan.verify().proven


def test_outputs_that_cannot_be_seen_are_refused():
    with pytest.raises(TraceError, match="no tensor can be found in the generator"):
        sec.trace(Returns(lambda t: (row for row in t)), torch.randn(5, 6))


def test_a_pruned_forward_that_raises_is_reported_as_such():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    plan = sec.plan(sec.trace(model, x), amount=0.5)
    broken = plan.apply(model)
    broken[2] = nn.Linear(3, 2)
    with pytest.raises(SurgeryError, match="pruned Sequential does not run"):
        plan.verify(model, broken)


class Window(nn.Module):
    """Scores against the part of a table around its middle; the span is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.score = nn.Parameter(torch.randn(20, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        span = torch.tensor(x.shape[1])
        return self.score(x) @ self.score(self.table[10 - span : 10 + span]).transpose(0, 1)


def test_a_slice_between_tensors_moves_with_what_is_removed_before_it() -> None:
    model, x = Window(), torch.randn(2, 4, 6)
    graph = sec.trace(model, x)
    plan = sec.plan(graph, amount=0.5, criterion="random", scope="uniform", kinds="all", seed=0)
    assert plan.removed["table#2"] == 3  # rows that no forward of this length reads
    assert plan.verify(model).ok
