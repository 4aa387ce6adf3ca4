"""Forwards that keep tables of their weights for the next one: pruning leaves none behind."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

X = torch.randn(3, 7, 10)


class Attention(nn.Module):
    """Attention with a bias a head, of which a table is kept in eval mode, as LeViT does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads = how, 4
        self.norm = nn.LayerNorm(10)
        self.qkv, self.out = nn.Linear(10, 48), nn.Linear(16, 10)
        self.bias = nn.Parameter(torch.randn(4, 49))
        self.register_buffer("index", torch.arange(49).flip(0).view(7, 7))
        self.cache: dict[str, Tensor] = {}
        self.table: Tensor | None = None
        self.known = 0

    def train(self, mode: bool = True) -> nn.Module:
        if mode:  # as in LeViT; other code, as LoRA's, changes weights here
            self.cache, self.table, self.known = {}, None, 0
            vars(self).pop("later", None)
            self.bias.data += 0.0 if self.bias.is_meta else 1.0
        return super().train(mode)

    def biases(self) -> Tensor:
        if self.training:
            return self.bias[:, self.index]
        if self.how == "dict":
            if "cpu" not in self.cache:
                self.cache["cpu"] = self.bias[:, self.index]
            return self.cache["cpu"]
        if self.how == "late":
            if not hasattr(self, "later"):
                self.later = self.bias[:, self.index]
            return self.later
        if self.known < 7:
            self.table, self.known = self.bias[:, self.index], 7
        assert self.table is not None
        return self.table

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, self.heads, -1).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / 2 + self.biases()
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def network(how: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 10), Attention(how), nn.Linear(10, 3)).eval()


def run(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(X).sum())


@pytest.mark.parametrize("how", ["dict", "late", "attribute"])
def test_a_forward_between_trace_and_surgery_leaves_nothing_behind(how: str) -> None:
    model = network(how)
    graph = sec.trace(model, X)
    run(model)
    plan = sec.plan(graph, amount=0.5, criterion="random")
    assert "1:head" in " ".join(plan.keep), plan.notes
    run(model)
    small = plan.apply(model)
    assert plan.verify(model, small).ok
    fresh = network(how)
    assert torch.equal(plan.apply(fresh)(X), small(X))
    assert run(model) == run(fresh)


@pytest.mark.parametrize("how", ["dict", "late", "attribute"])
def test_a_model_that_has_run_before_is_pruned_as_one_that_has_not(how: str) -> None:
    model, fresh = network(how), network(how)
    before = run(model)
    bias = model[1].bias.clone()
    ran, new = (sec.plan(sec.trace(m, X), amount=0.5) for m in (model, fresh))
    assert ran.removed == new.removed
    small = ran.apply(model)
    assert ran.verify(model, small).ok
    assert run(small) == run(new.apply(fresh))
    assert run(model) == before
    assert torch.equal(model[1].bias, bias)


@pytest.mark.parametrize("how", ["dict", "late", "attribute"])
def test_prune_judges_and_proves_a_model_that_keeps_tables(how: str) -> None:
    result = sec.prune(network(how), X, amount=0.5, evaluate=run, measure=False)
    assert result.verification is not None and result.verification.ok


@pytest.mark.parametrize("how", ["dict", "late", "attribute"])
def test_tables_of_masked_weights_do_not_outlive_the_masks(how: str) -> None:
    model, before = network(how), run(network(how))
    plan = sec.plan(sec.trace(model, X), amount=0.5, criterion="random")
    with sec.masked(network(how), plan) as never_run:
        masked = run(never_run)
    with sec.masked(model, plan):
        assert run(model) == masked
    assert run(model) == before
