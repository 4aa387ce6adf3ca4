"""Architectures that are saved and loaded, each built by name in any process.

``python stored_models.py PLACE`` loads every folder in PLACE onto fresh builds, with values and on
the meta device, and writes what they compute to PLACE: it shares no memory with who saved.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Tied weights, passing buffers, reordered and joined channels, a packed projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.register_buffer("wave", torch.linspace(-1, 1, 12), persistent=False)
        self.register_buffer("wave_again", torch.linspace(-1, 1, 12), persistent=False)
        self.qkv = nn.Linear(12, 48)
        self.project = nn.Linear(16, 12)
        self.up = nn.Linear(12, 20)
        self.norm = nn.BatchNorm1d(20)
        self.gate = nn.Linear(20, 6, bias=False)
        self.out = nn.Linear(12, 11, bias=False)
        self.out.weight = self.embed.weight
        self.last = nn.Linear(26, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.wave + self.wave_again
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, 4, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = self.project((q @ k.transpose(-2, -1) * 4**-0.5 @ v).transpose(1, 2).reshape(B, N, 16))
        h = self.norm(self.up(x.mean(1))).relu().flip(1)
        return self.last(torch.cat([h, self.gate(h)], 1)) + self.out(x).mean(1)[:, :3]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.c = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.norm(self.a(x)).relu()).mean((2, 3)))


def resnet18() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=10)


def vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=7)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=32,
        )
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def lstm() -> nn.Module:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.lstm = nn.LSTM(16, 12, 2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(24, 5)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.lstm(self.embed(ids))[0][:, -1])

    return Tagger()


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _ids(n: int) -> Tensor:
    return torch.arange(18).reshape(2, 9) * 7 % n


def _images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


MODELS = {
    "branches": (Branches, lambda: _ids(11)),
    "plain": (Plain, lambda: _images(8)),
    "resnet18": (resnet18, lambda: _images(32)),
    "vit": (vit, lambda: _images(32)),
    "llama": (llama, lambda: {"input_ids": _ids(97)}),
    "bert": (bert, lambda: {"input_ids": _ids(97)}),
    "gpt2": (gpt2, lambda: {"input_ids": _ids(97)}),
    "lstm": (lstm, lambda: _ids(50)),
    "encoder": (encoder, lambda: torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model of MODELS in eval mode; its random weights follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[name][0]().eval()


def inputs(name: str):
    return MODELS[name][1]()


@torch.no_grad()
def output(model: nn.Module, given) -> Tensor:
    """The main tensor of the model's output."""
    result = model(**given) if isinstance(given, dict) else model(given)
    return result if isinstance(result, Tensor) else result.logits


def halved(graph, kinds=None, seed=0, share=0.5):
    """A random half of every free class (of these kinds)."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for c in graph.free.values():
        if kinds is None or c.kind in kinds:
            chosen = torch.randperm(c.size, generator=generator)[: max(1, round(c.size * share))]
            keep[c.name] = chosen.sort().values
    return keep


def main(place: str) -> None:
    from safetensors.torch import save_file

    from secateur.plan.store import load

    torch.set_num_threads(1)
    found = {}
    for name in MODELS:
        folder = Path(place) / name
        with torch.device("meta"):
            empty = build(name)
        found[f"{name} plain"] = output(load(partial(build, name, 1), folder), inputs(name))
        found[f"{name} meta"] = output(load(empty, folder), inputs(name))
    tensors = {k: t.contiguous() for k, t in found.items()}
    save_file(tensors, Path(place) / "outputs.safetensors")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(*sys.argv[1:])
