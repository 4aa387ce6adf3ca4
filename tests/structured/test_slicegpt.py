"""SliceGPT: the same outputs before anything is sliced, and what slicing means, written out."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers as hf
from test_reap import mixtral
from tiny import VOCABULARY, batches, gpt2, llama, logits, parameters, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import BudgetError, ConfigError, PlanError
from secateur.methods.bases import Bases, with_bases
from secateur.methods.droppable import depth_of

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}


def scaled(model: nn.Module) -> nn.Module:
    """Norms with scales, as trained ones have."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(torch.rand(p.shape, generator=generator) + 0.5)
    return model


def tied() -> nn.Module:
    return scaled(llama(3, tie_word_embeddings=True))


def biased() -> nn.Module:
    """Biases on what goes in and what comes out."""
    model = scaled(llama(2, attention_bias=True, mlp_bias=True))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    return model


def qwen3() -> nn.Module:
    """Norms of queries and keys, which are no norms of the residual stream."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return scaled(hf.Qwen3ForCausalLM(hf.Qwen3Config(**shape)).eval())


def gemma() -> nn.Module:
    """Norms that add 1 to their scale; embeddings times a root of the width."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return scaled(hf.GemmaForCausalLM(hf.GemmaConfig(**shape)).eval())


def opt(**config: Any) -> nn.Module:
    """Learnt positions; the head has no bias."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
        "init_std": 0.2,
    }  # fmt: skip
    return shifted(hf.OPTForCausalLM(hf.OPTConfig(**{**shape, **config})).eval())


def parallel(kind: str) -> nn.Module:
    """Attention and MLP side by side; Phi has one norm for both, GPT-NeoX one each."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }  # fmt: skip
    made: Any = getattr(hf, f"{kind}ForCausalLM")
    return shifted(made(getattr(hf, f"{kind}Config")(**shape)).eval())


def shifted(model: nn.Module) -> nn.Module:
    """Scales, shifts and biases, as trained models have; means too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_(torch.rand(p.shape, generator=generator) + name.endswith("weight"))
            else:
                p.add_(0.1)
    return model


def unpadded() -> nn.Module:
    """Without a token for padding, which the forward would look for in the inputs."""
    model: Any = gpt2()
    model.config.pad_token_id = None
    return shifted(model)


LAYER_NORMS: dict[str, Any] = {
    "opt": opt, "gpt2": unpadded, "neox": lambda: parallel("GPTNeoX"),
    "phi": lambda: parallel("Phi"),
}  # fmt: skip


def turned(model: nn.Module, left: int | None = None) -> Bases:
    stay = None if left is None else lambda _: left
    return with_bases(depth_of(model, batches()), INPUTS, stay)


@pytest.mark.parametrize(
    "build", [tied, biased, qwen3, lambda: scaled(mixtral())], ids=["llama", "bias", "qwen3", "moe"]
)
def test_nothing_changes_before_slicing(build: Any) -> None:
    model = build()
    before = {n: p.clone() for n, p in model.named_parameters()}
    made: Any = turned(model).graph.model
    other = tokens(seed=7)  # not what the bases were made from
    assert_close(logits(made, other), logits(model, other), rtol=1e-4, atol=1e-4)
    assert not torch.equal(made.model.embed_tokens.weight, model.model.embed_tokens.weight)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    assert all(bool((m.weight == 1).all()) for n, m in made.named_modules()
               if n.endswith("layernorm"))  # fmt: skip


@pytest.mark.parametrize("name", [*LAYER_NORMS, "gemma"])
def test_nothing_changes_where_norms_have_means_or_shifts(name: str) -> None:
    model = gemma() if name == "gemma" else LAYER_NORMS[name]()
    before = {n: p.clone() for n, p in model.named_parameters()}
    here = turned(model)
    made: Any = here.graph.model
    assert_close(logits(made, tokens(seed=7)), logits(model, tokens(seed=7)), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    norms = [made.get_submodule(n) for names in here.norms.values() for n in names]
    if name == "gemma":
        assert all(bool((m.weight == 0).all()) for m in norms)
    else:
        assert all(isinstance(m, nn.RMSNorm) and bool((m.weight == 1).all()) for m in norms)
        assert not any(isinstance(m, nn.LayerNorm) for m in made.modules())


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norms_are_sliced_saved_and_loaded(name: str, tmp_path: Any) -> None:
    model = LAYER_NORMS[name]()
    how: dict[str, Any] = {"method": "slicegpt", "data": batches(), **QUIET}
    whole = sec.prune(model, INPUTS, amount=0, **how)
    assert_close(logits(whole.model), logits(model), rtol=1e-4, atol=1e-4)
    result = sec.prune(model, INPUTS, amount=0.25, **how)
    assert result.verification.ok
    assert all(m.weight.shape == (24,) == m.normalized_shape for m in result.model.modules()
               if isinstance(m, nn.RMSNorm))  # fmt: skip
    folder = result.save(tmp_path / "out")
    loaded = sec.load(LAYER_NORMS[name], folder)
    assert_close(logits(loaded), logits(result.model), rtol=0, atol=0)
    assert sec.Plan.load(folder).dropped == result.plan.dropped


def test_the_bases_are_principal_components() -> None:
    here = turned(tied())
    made: Any = here.graph.model
    for k, c in enumerate(here.classes):
        seen: list[Tensor] = []
        with ExitStack() as stack:
            after = [f"model.layers.{k + 1}.shortcut"] if k + 1 < len(here.classes) else []
            for name in (*here.norms[c.name], *after):
                hook = made.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, to=seen: to.append(args[0].flatten(0, 1).double())
                )
                stack.callback(hook.remove)
            for batch in batches():
                logits(made, batch["input_ids"])
        x = torch.cat(seen)
        assert_close(x.T @ x, here.energy[c.name].diag(), rtol=1e-3, atol=1e-2)
        assert bool((here.energy[c.name].diff() <= 0).all())
        if k:
            shortcut = made.model.layers[k].shortcut.weight
            assert_close(shortcut @ shortcut.T, torch.eye(32), rtol=0, atol=1e-5)
    assert [len(here.norms[c.name]) for c in here.classes] == [2, 2, 3]  # and the last norm


def test_what_a_block_writes_last_is_not_cut_off_unseen() -> None:
    """As the huge activations of real models are: no norm of the block that writes it sees it."""
    model: Any = llama(3)
    loud = torch.randn(32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        down = model.model.layers[0].mlp.down_proj.weight
        down.add_(300 * torch.outer(loud, down[0]))
    here = turned(model)
    made: Any = here.graph.model
    seen: list[Tensor] = []
    made.model.layers[1].shortcut.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches():
        logits(made, batch["input_ids"])
    x = torch.cat(seen).flatten(0, 1)
    assert x[:, 16:].square().sum() < 0.01 * x.square().sum()


def test_later_bases_are_made_from_what_the_sliced_blocks_before_let_through() -> None:
    model: Any = tied()
    here = turned(model, 24)
    layers, cuts = model.model.layers, []
    for k, c in enumerate(here.classes):
        seen: list[Tensor] = []
        after = layers[k + 1] if k + 1 < len(layers) else model.model.norm
        readers = [layers[k].input_layernorm, layers[k].post_attention_layernorm, after]
        hooks = [
            m.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0].flatten(0, 1)))
            for m in readers
        ]
        for batch in batches():
            logits(model, batch["input_ids"])
        for hook in hooks:
            hook.remove()
        x = torch.cat(seen).double()
        values, vectors = torch.linalg.eigh(x.T @ x)
        assert_close(here.energy[c.name], values.flip(0), rtol=1e-3, atol=1e-2)
        onto = (vectors[:, -24:] @ vectors[:, -24:].T).float()
        cuts += [
            m.register_forward_pre_hook(lambda _, args, p=onto: (args[0] @ p, *args[1:]))
            for m in readers
        ]
    whole = turned(tied())
    assert_close(whole.energy[whole.classes[0].name], here.energy[here.classes[0].name])
    last = whole.classes[-1].name
    assert not torch.allclose(whole.energy[last], here.energy[last], rtol=1e-2)
    result = sec.prune(tied(), INPUTS, method="slicegpt", amount=0.25, data=batches(), **QUIET)
    assert_close(logits(result.model), logits(model), rtol=1e-3, atol=1e-3)


def test_sliced_is_rotated_with_the_last_components_at_zero() -> None:
    model = tied()
    result = sec.prune(model, INPUTS, method="slicegpt", amount=0.25, data=batches(), **QUIET)
    assert result.verification.ok
    here = turned(model, 24)
    masked: Any = copy.deepcopy(here.graph.model)
    writes = ["embed_tokens", "o_proj", "down_proj", "shortcut"]

    def cut(_: Any, __: Any, output: Tensor) -> Tensor:
        return torch.cat([output[..., :24], torch.zeros_like(output[..., 24:])], -1)

    for name, module in masked.named_modules():
        if name.rpartition(".")[2] in writes:
            module.register_forward_hook(cut)
    assert_close(logits(result.model), logits(masked), rtol=1e-4, atol=1e-4)
    assert result.model.model.layers[1].shortcut.weight.shape == (24, 24)
    assert result.model.lm_head.weight is not result.model.model.embed_tokens.weight
    (note,) = (n for n in result.plan.notes if "variance" in n or "%" in n)
    lost = [float(e[24:].sum() / e.sum()) for e in here.energy.values()]
    assert f"{min(lost):.1%} to {max(lost):.1%}" in note


def test_it_is_saved_loaded_and_generates(tmp_path: Any) -> None:
    result = sec.prune(tied(), INPUTS, method="slicegpt", amount=0.25, data=batches(), **QUIET)
    folder = result.save(tmp_path / "out")
    loaded = sec.load(tied, folder)
    assert_close(logits(loaded), logits(result.model), rtol=0, atol=0)
    assert sec.Plan.load(folder).dropped == result.plan.dropped
    ids = tokens(2, 5)
    how: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "min_length": 10,
        "do_sample": False,
    }  # fmt: skip
    cached, plain = (loaded.generate(ids, **how, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    copied = copy.deepcopy(loaded)
    assert_close(logits(copied), logits(loaded), rtol=0, atol=0)


def test_a_budget_counts_the_shortcuts_and_the_second_embedding() -> None:
    model = tied()
    keep = {"params": 0.8}
    result = sec.prune(model, INPUTS, method="slicegpt", keep=keep, data=batches(), **QUIET)
    assert parameters(result.model) <= 0.8 * parameters(model)
    assert result.model.config.tie_word_embeddings is False


def test_padding_does_not_count() -> None:
    model, ids = tied(), tokens()
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = [{"input_ids": ids, "attention_mask": mask}]
    short = [{"input_ids": ids[:, :8]}]
    one, other = (with_bases(depth_of(model, data), INPUTS).energy for data in (padded, short))
    for name, energy in one.items():
        assert_close(energy, other[name], rtol=1e-3, atol=1e-3)


def test_what_cannot_be_meant_is_refused() -> None:
    how: dict[str, Any] = {"method": "slicegpt", "data": batches(), **QUIET}
    with pytest.raises(PlanError, match=r"or come after what is added"):
        sec.prune(opt(do_layer_norm_before=False), INPUTS, **how)
    with pytest.raises(ConfigError, match="leave inplace= out"):
        sec.prune(tied(), INPUTS, inplace=True, **how)
    with pytest.raises(BudgetError, match="cannot be met"):
        sec.prune(tied(), INPUTS, keep={"params": 0.001}, **how)
    with pytest.raises(ConfigError, match="params"):
        sec.prune(tied(), INPUTS, keep={"macs": 0.8}, **how)
