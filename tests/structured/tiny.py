"""Tiny transformers of several architectures, and text for them that has a little structure."""

from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 61


def tokens(batch: int = 4, length: int = 12, seed: int = 0) -> Tensor:
    """Counting upwards in steps that differ from text to text."""
    generator = torch.Generator().manual_seed(seed)
    start, step = (torch.randint(1, 30, (batch, 1), generator=generator) for _ in range(2))
    return (start + step * torch.arange(length)) % (VOCABULARY - 3) + 3


def batches(count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    texts = [tokens(seed=seed + k) for k in range(count)]
    return [{"input_ids": t, "labels": t} for t in texts]


def llama(layers: int = 3, **config: Any) -> nn.Module:
    """Grouped queries, rotary positions, gated MLP, no biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **config})).eval()


def gpt2(layers: int = 2) -> nn.Module:
    """Packed heads, positions that are learnt, biases everywhere, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": layers, "n_head": 4}
    special = {"n_positions": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape, **special, initializer_range=0.2)).eval()


def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids).logits


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
