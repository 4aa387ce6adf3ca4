"""A tiny transformers model: its class, its configuration and inputs that fit.

Sizes differ on purpose: 48 wide, 6 heads of 8, 2 key-value heads, 80 in the middle, 11 tokens,
so that two axes are not taken for one because their sizes collide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.coverage.case import Built
from torch import Tensor

VOCABULARY, TOKENS, LABELS = 99, 11, 7
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ENCODER = SPECIAL | {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "num_labels": LABELS,
}
DECODER = SPECIAL | {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "tie_word_embeddings": False,
    "use_cache": False,
}
GROUPED = DECODER | {"num_key_value_heads": 2}
SEQ2SEQ = SPECIAL | {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "use_cache": False,
}
VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "image_size": 40,
    "patch_size": 8,
    "num_labels": LABELS,
}


@dataclass(frozen=True)
class Tiny:
    """One architecture; ``config`` is the keywords of its configuration or makes the whole."""

    name: str
    network: str
    config: dict[str, Any] | Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]

    def build(self) -> Built:
        import transformers

        transformers.logging.set_verbosity_error()
        network = getattr(transformers, self.network)
        made = callable(self.config)
        config = self.config() if made else network.config_class(**self.config)
        return network(config).eval(), (), self.inputs()


def token_ids(length: int = TOKENS, batch: int = 2) -> Tensor:
    """Random token ids beyond the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length))


def text() -> dict[str, Any]:
    """Token ids."""
    return {"input_ids": token_ids()}


def text_to_text() -> dict[str, Any]:
    """Token ids of a source and of a shorter target."""
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(7)}


def image(side: int = 40) -> Callable[[], dict[str, Any]]:
    """Two square images."""
    return lambda: {"pixel_values": torch.randn(2, 3, side, side)}


def text_and_image(side: int = 40) -> Callable[[], dict[str, Any]]:
    """Two captions and two images."""
    return lambda: text() | image(side)()
