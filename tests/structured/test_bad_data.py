"""What is wrong with the data is said once and clearly, and the model stays as it was."""

import copy
import gc
from typing import Any

import pytest
import torch
from test_reap import mixtral
from tiny import VOCABULARY, batches, llama, tokens
from torch import nn

import secateur as sec
from secateur.errors import DataError

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}
WRONG = {
    "another tokenizer": (tokens() + VOCABULARY, "the model knows 61: tokenize the text with"),
    "too long": (tokens(length=65), "65 tokens, but the model takes at most 64"),
    "empty": (tokens()[:, :0], "has no token"),
}
HOW: list[dict[str, Any]] = [
    {"method": m} for m in ("flap", "minitron", "mask_tuning", "width", "llm_pruner", "shortgpt",
                            "shortened_llama", "sleb", "blockpruner", "evopress", "slicegpt")
] + [
    {"recovery": r} for r in ("fold", "bias", "scale", "least-squares", "lora", "fine-tune",
                              "distil")
]  # fmt: skip


def refused(model: nn.Module, inputs: Any, data: Any, words: str, **how: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=words):
        sec.prune(model, inputs, data=data, amount=0.34, **how, **QUIET)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    gc.collect()  # what an error has left half done must not end later, in somebody else's mode
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("how", HOW, ids=lambda how: next(iter(how.values())))
@pytest.mark.parametrize("wrong", WRONG)
def test_tokens_that_the_model_does_not_take_are_named(how: dict[str, Any], wrong: str) -> None:
    ids, words = WRONG[wrong]
    refused(llama(3), INPUTS, [{"input_ids": ids, "labels": ids}], words, **how)


def test_routed_experts_are_given_tokens_that_they_know() -> None:
    data = [{"input_ids": tokens() + VOCABULARY}]
    refused(mixtral(), INPUTS, data, "tokenize the text with", method="reap")


def picture_model() -> nn.Module:
    torch.manual_seed(0)
    return sec.zoo.build("vit").eval()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "method", ["shortgpt", "shortened_llama", "sleb", "evopress", "slicegpt", "flap", "mask_tuning"]
)
def test_activations_that_are_not_finite_choose_nothing(method: str, place: int) -> None:
    x = [torch.randn(2, 1, 28, 28) for _ in range(2)]
    x[place][0, 0, 3, 3] = torch.nan
    data = [(part, torch.tensor([0, 1])) for part in x]
    refused(picture_model(), torch.randn(2, 1, 28, 28), data, "NaN", method=method)


def test_gates_are_not_set_by_what_is_not_finite() -> None:
    data = [(torch.full((2, 1, 28, 28), torch.nan),)]
    for method, how in (("dynatran", {"sparsity": 0.5}), ("tome", {}), ("evit", {})):
        model = picture_model()
        with pytest.raises(DataError, match="NaN or infinite"):
            sec.gate(model, method, data=data, **how)
        assert all("forward" not in m.__dict__ for m in model.modules())


def test_a_text_of_one_token_has_nothing_to_predict() -> None:
    ids = tokens()[:, :1]
    data = [*batches(1), {"input_ids": ids, "labels": ids}]
    refused(llama(2), INPUTS, data, "texts of one token", method="mask_tuning")
