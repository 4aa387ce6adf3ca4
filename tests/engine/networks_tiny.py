"""Tiny random networks of many architectures, and an input for each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

IDS = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
BOTH = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 100,
}


def llama(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**TEXT, "num_key_value_heads": 2, **more})).eval()


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = hf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4)
    return hf.MixtralForCausalLM(config).eval()


def gpt2() -> nn.Module:
    config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100)
    config.bos_token_id = config.eos_token_id = 1
    return hf.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100)
    return hf.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    image = {"image_size": 32, "patch_size": 8}
    sizes = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    return hf.ViTModel(hf.ViTConfig(**sizes, **image))


def swin() -> nn.Module:
    config = hf.SwinConfig(
        embed_dim=16, depths=[2, 2], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4
    )
    return hf.SwinModel(config)


def torchvision_vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64)


def timm_vit() -> nn.Module:
    import timm

    name = "vit_tiny_patch16_224"
    return timm.create_model(name, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


def resnet() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def gemma3n() -> nn.Module:
    """The last two layers read keys and values that the first two put into a dict."""
    config = hf.Gemma3nTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=100, vocab_size_per_layer_input=100,
        hidden_size_per_layer_input=8, num_kv_shared_layers=2, laurel_rank=4, altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    return hf.Gemma3nForCausalLM(config)


PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 16, [1] * 10 + [0] * 6])}
PAIR = {"input_ids": IDS, "decoder_input_ids": IDS[:, :8]}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {  # and how many blocks
    "llama": (llama, {"input_ids": IDS}, 2),
    "mixtral": (mixtral, {"input_ids": IDS}, 2),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), PADDED, 2),
    "albert": (lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=16)), PADDED, 1),
    "gemma3n": (gemma3n, {"input_ids": IDS}, 4),
    "gpt2": (gpt2, {"input_ids": IDS}, 2),
    "t5": (t5, PAIR, 4),
    "bart": (lambda: hf.BartModel(hf.BartConfig(**BOTH)), PAIR, 4),
    "vit": (vit, {"pixel_values": IMAGE}, 2),
    "swin": (swin, {"pixel_values": IMAGE}, 4),
    "torchvision_vit": (torchvision_vit, IMAGE, 2),
    "timm_vit": (timm_vit, IMAGE, 2),
    "encoder": (encoder, torch.randn(2, 8, 32), 2),
    "resnet": (resnet, IMAGE, 8),
    "mlp": (mlp, torch.randn(4, 8), 3),
}
