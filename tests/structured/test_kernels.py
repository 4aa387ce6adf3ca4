"""The same heads and neurons go, whichever attention kernel was traced, with a mask or without."""

from typing import Any

import pytest
import torch
import transformers as hf
from tiny import VOCABULARY, batches, llama, tokens
from torch import nn

import secateur as sec

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}
MASKED = {**INPUTS, "attention_mask": torch.ones_like(tokens())}


def shapes(model: Any) -> list[tuple[int, ...]]:
    layers = model.model.layers
    return [
        (
            *(getattr(a.self_attn, f"{n}_proj").out_features for n in "qkv"),
            a.mlp.up_proj.out_features,
        )
        for a in layers
    ]


@pytest.mark.parametrize("method", ["wanda_sp", "minitron"])
def test_what_goes_does_not_depend_on_the_kernel(method: str, tmp_path: Any) -> None:
    found, widths = [], []
    for kernel in ("sdpa", "eager"):
        for inputs in (INPUTS, MASKED):
            model = llama(2, attn_implementation=kernel)
            how: dict[str, Any] = {"method": method, "amount": 0.5, "data": batches(), **QUIET}
            result = sec.prune(model, inputs, **how)
            found.append({name: kept.tolist() for name, kept in result.plan.keep.items()})
            widths.append(shapes(result.model))
            folder = result.save(tmp_path / f"{kernel}-{len(found)}")
            assert (folder / "config.json").exists()
    assert all(other == found[0] for other in found)
    assert all(other == [(16, 8, 8, 20)] * 2 for other in widths)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_kinds_do_not_depend_on_the_kernel(kernel: str, keys: int) -> None:
    model = llama(1, num_attention_heads=4, num_key_value_heads=keys, attn_implementation=kernel)
    kinds = [
        {name: (c.kind, c.size, c.over) for name, c in sec.trace(model, inputs).free.items()}
        for inputs in (INPUTS, MASKED)
    ]
    assert kinds[0] == kinds[1]
    attention = [(k, n) for name, (k, n, _) in kinds[0].items() if "self_attn" in name]
    groups = [("query", 4 // keys)] if keys == 2 else []
    assert attention == [
        ("head", 4 if keys == 1 else keys), *groups, ("head_dim", 4), ("head_dim", 8)
    ]  # fmt: skip


def sliding() -> nn.Module:
    """Layers of two sorts, of which only one sees a mask."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2,
    }  # fmt: skip
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**shape)).eval()


def test_sliding_and_full_layers_keep_as_many_heads() -> None:
    how: dict[str, Any] = {"method": "wanda_sp", "amount": 0.5, "data": batches(), **QUIET}
    assert shapes(sec.prune(sliding(), INPUTS, **how).model) == [(16, 8, 8, 20)] * 4


def test_experts_in_a_batched_product_are_no_heads() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 8, 12))
            self.down = nn.Parameter(torch.randn(3, 12, 8))
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(((x.expand(3, -1, -1) @ self.up).relu() @ self.down).sum(0))

    graph = sec.trace(Experts(), torch.randn(5, 6))
    assert {c.kind for c in graph.free.values() if c.size in (8, 12)} == {"channel"}
