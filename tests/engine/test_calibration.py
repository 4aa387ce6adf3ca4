"""Calibration that a model cannot take is refused, however it is given."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from secateur.engine.calibration import calibration
from secateur.errors import DataError

SIZES: dict[str, Any] = {
    "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
    "vocab_size": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=32))


def bart() -> nn.Module:
    sides = {"ffn_dim": 16, "layers": 1, "attention_heads": 2}
    both = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sides.items()}
    config = BartConfig(
        d_model=16, vocab_size=64, max_position_embeddings=32, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, **both,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def ids(length: int, value: int = 5) -> Tensor:
    return torch.full((1, length), value)


def said(model: nn.Module, batch: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(calibration(model, [batch]))
    return str(caught.value)


@pytest.mark.parametrize(
    "given", [lambda x: x, lambda x: (x,), lambda x: (x, torch.ones_like(x), 0)]
)
def test_bare_tokens_and_tuples_are_looked_at_too(given: Any) -> None:
    assert "at most 32" in said(llama(), given(ids(33)))
    assert "token 64, but the model knows 64" in said(llama(), given(ids(8, 64)))
    assert "token -3" in said(llama(), given(ids(8, -3)))
    assert "no token" in said(llama(), given(ids(0)))
    assert len(list(calibration(llama(), [given(ids(32))]))) == 1


def test_what_a_decoder_is_given_is_looked_at() -> None:
    good = {"input_ids": ids(8)}
    assert "at most 32" in said(bart(), {**good, "decoder_input_ids": ids(33)})
    assert "decoder_input_ids" in said(bart(), {**good, "decoder_input_ids": ids(8, 64)})
    fine = {"input_ids": ids(32), "decoder_input_ids": ids(32)}
    assert list(calibration(bart(), [fine])) == [fine]


def test_limits_are_those_that_the_model_has() -> None:
    xlnet = XLNetLMHeadModel(
        XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=16)
    )
    assert len(list(calibration(xlnet, [{"input_ids": ids(9)}]))) == 1
    roberta = RobertaForMaskedLM(RobertaConfig(**SIZES, max_position_embeddings=34)).eval()
    roberta(input_ids=ids(32))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=ids(33))
    assert "at most 32" in said(roberta, {"input_ids": ids(33)})
    assert len(list(calibration(roberta, [{"input_ids": ids(32)}]))) == 1


def test_of_a_model_of_images_and_text_the_text_counts() -> None:
    text = {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4)
    assert "at most 32" in said(Gemma3ForConditionalGeneration(config), {"input_ids": ids(33)})
