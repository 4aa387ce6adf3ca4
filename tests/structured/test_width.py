"""The recipe for width: Fisher's choice and least squares after it; texts without labels."""

from typing import Any

import pytest
import torch
from tiny import batches, llama, tokens
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification

import secateur as sec
from secateur.errors import DataError

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}


def fitted(dense: nn.Module, data: list[dict[str, Tensor]], name: str, kept: list[int]) -> Tensor:
    """The weight that says best, on the dense model's inputs, what the dense layer says."""
    seen: list[Tensor] = []
    layer = dense.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in data:
            dense(**batch)
    hook.remove()
    x = torch.cat(seen).double()
    x = x - x.mean(0)
    part = x[:, kept]
    ridge = 1e-2 * part.square().sum(0).mean() * torch.eye(len(kept))
    removed = [k for k in range(x.shape[1]) if k not in kept]
    moved = torch.linalg.solve(part.T @ part + ridge, part.T @ x[:, removed])
    weight = layer.weight.detach().double()
    return weight[:, kept] + weight[:, removed] @ moved.T


def test_units_are_those_of_least_fisher_information_and_the_rest_is_fitted() -> None:
    model, data = llama(2), batches(3)
    how: dict[str, Any] = {"amount": 0.4, "data": data, **QUIET}
    result = sec.prune(model, INPUTS, method="width", **how)
    assert result.verification.ok
    plain: dict[str, Any] = {"criterion": "taylor_gate", "kinds": ["head", "channel"], **how}
    assert result.plan.removed == sec.prune(model, INPUTS, scope="global", **plain).plan.removed
    narrowed = 0
    for name, small in result.model.named_modules():
        if not name.endswith("mlp.down_proj"):
            continue
        kept = result.plan.masks(f"{name}.weight")[1].nonzero().flatten().tolist()
        narrowed += len(kept) < model.get_submodule(name).in_features
        wanted = fitted(model, data, name, kept)
        torch.testing.assert_close(small.weight.double(), wanted, rtol=1e-3, atol=1e-5)
    assert narrowed


@pytest.mark.parametrize(
    "how",
    [{"method": "width"}, {"method": "sleb", "amount": 0.5}, {"recovery": "fine-tune"},
     {"recovery": ("distil", {"alpha": 0.5})}],
)  # fmt: skip
def test_a_text_is_its_own_label(how: dict[str, Any]) -> None:
    """As for ``sec.sparsify``: where there are no labels the tokens are."""
    bare = [{"input_ids": batch["input_ids"]} for batch in batches(2)]
    both = [{**batch, "labels": batch["input_ids"]} for batch in bare]
    ids = [batch["input_ids"] for batch in bare]
    model = llama(4)
    one, *others = (
        sec.prune(model, INPUTS, **{"amount": 0.25, **how}, data=data, **QUIET).model
        for data in (both, bare, ids, [[t] for t in ids])
    )
    for other in others:
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_tokens_are_no_labels_of_a_classifier() -> None:
    model = LlamaForSequenceClassification(llama(2).config).eval()
    for data in ([{"input_ids": tokens()}], [tokens()]):
        with pytest.raises(DataError, match="no loss follows from the batch"):
            sec.prune(model, INPUTS, amount=0.25, recovery="fine-tune", data=data, **QUIET)
