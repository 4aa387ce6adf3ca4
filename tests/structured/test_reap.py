"""REAP: which experts go, that the rest is right, and that a stock model loads what is left."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers as hf
from tiny import VOCABULARY, batches, logits, parameters, tokens
from torch import nn
from torch.nn import functional as F

import secateur as sec
from secateur.errors import BudgetError, ConfigError, PlanError, StoreError
from secateur.methods.after.reap import saliency
from secateur.methods.routed import experts_of
from secateur.plan.gaps import Gap, drop

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip


def mixtral(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = hf.MixtralConfig(**SHAPE, num_local_experts=8, num_experts_per_tok=2, **more)
    return hf.MixtralForCausalLM(config).eval()


def qwen() -> nn.Module:
    """Weights of chosen experts that do not add up to one."""
    torch.manual_seed(0)
    more: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 3, "head_dim": 8}
    config = hf.Qwen3MoeConfig(**SHAPE, **more, moe_intermediate_size=16, norm_topk_prob=False)
    return hf.Qwen3MoeForCausalLM(config).eval()


def naive(block: nn.Module, states: torch.Tensor, top: int, share: bool) -> list[list[float]]:
    """Of each expert the numbers that REAP takes the mean of, token by token."""
    found: list[list[float]] = [[] for _ in block.experts.down_proj]
    for x in states.flatten(0, 1):
        weights = torch.softmax(block.gate.weight @ x, 0)
        chosen = sorted(range(len(weights)), key=lambda j: -float(weights[j]))[:top]
        total = sum(float(weights[j]) for j in chosen) if share else 1.0
        for j in chosen:
            gate, up = (block.experts.gate_up_proj[j] @ x).chunk(2)
            added = block.experts.down_proj[j] @ (F.silu(gate) * up)
            found[j].append(float(weights[j]) / total * float(added.norm()))
    return found


@pytest.mark.parametrize(("build", "top", "share"), [(mixtral, 2, True), (qwen, 3, False)])
def test_the_saliency_is_the_formula_written_out(build: Any, top: int, share: bool) -> None:
    model, data = build(), batches(2)
    scores, counts = saliency(experts_of(model, data))
    for k, layer in enumerate(model.model.layers):
        seen: list[torch.Tensor] = []
        hook = layer.mlp.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        with torch.no_grad():
            for batch in data:
                model(input_ids=batch["input_ids"])
            expected = naive(layer.mlp, torch.cat(seen), top, share)
        hook.remove()
        name = f"model.layers.{k}.mlp"
        assert counts[name].tolist() == [len(each) for each in expected]
        means = [sum(each) / max(len(each), 1) for each in expected]
        assert scores[name].tolist() == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("build", [mixtral, qwen])
def test_the_lowest_go_and_what_is_left_is_proven(build: Any) -> None:
    model, data = build(), batches()
    before = {n: p.clone() for n, p in model.named_parameters()}
    result = sec.prune(model, INPUTS, method="reap", amount=0.5, data=data, **QUIET)
    assert result.verification.ok and result.verification.change > 0.01
    scores, _ = saliency(experts_of(model, data))
    for gap in result.plan.dropped:
        half = len(scores[gap.module]) // 2
        assert set(gap.experts) == set(scores[gap.module].argsort()[:half].tolist())
        stays = [j for j in range(2 * half) if j not in gap.experts]
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            name = f"{gap.module}.{part}"
            assert torch.equal(result.model.get_parameter(name), before[name][stays])
    assert len(result.plan.dropped) == 2
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    assert result.report.after.parameters == parameters(result.model) < parameters(model)


SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[5, 9, 13], [4, 6, 8]])
with torch.no_grad():
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_length=8,
                         do_sample=False)
assert "secateur" not in sys.modules
print(model.config.get_text_config().num_experts_per_tok, out.tolist())
"""


def test_plain_transformers_loads_fewer_experts_and_generates(tmp_path: Any) -> None:
    model = mixtral()
    result = sec.prune(model, INPUTS, method="reap", amount=0.25, data=batches(), **QUIET)
    folder = result.save(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stock = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert stock.config.num_local_experts == 6 == stock.model.layers[0].mlp.experts.num_experts
    torch.testing.assert_close(logits(stock), logits(result.model))
    ids = torch.tensor([[5, 9, 13], [4, 6, 8]])
    how: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5}
    ours = result.model.generate(ids, **how, min_length=8, do_sample=False)
    assert done.stdout.split(" ", 1) == ["2", f"{ours.tolist()}\n"]
    again = sec.load(mixtral, folder)
    torch.testing.assert_close(logits(again), logits(result.model), rtol=0, atol=0)
    labelled = result.model(**batches(1)[0], output_router_logits=True)
    assert labelled.aux_loss.isfinite()  # which counts the experts


def test_experts_that_saw_no_token_stay_and_are_named() -> None:
    model = mixtral()
    for layer in model.model.layers:
        with torch.no_grad():  # by far the smallest, if it were asked
            layer.mlp.experts.down_proj[3].mul_(1e-6)
    with torch.no_grad():
        gate = model.model.layers[1].mlp.gate
        gate.register_forward_pre_hook(lambda _, args: (args[0].abs(),))
        gate.weight[3] = -10.0
    data = batches()
    _, counts = saliency(experts_of(model, data))
    assert counts["model.layers.1.mlp"][3] == 0
    result = sec.prune(model, INPUTS, method="reap", amount=0.125, data=data, **QUIET)
    gone = {gap.module: gap.experts for gap in result.plan.dropped}
    if counts["model.layers.0.mlp"][3]:
        assert gone["model.layers.0.mlp"] == (3,)
    assert 3 not in gone["model.layers.1.mlp"]
    (note,) = [n for n in result.plan.notes if "model.layers.1.mlp saw no token" in n]
    assert "3" in note and note in str(result.plan)
    with pytest.raises(BudgetError, match="experts that saw no token stay"):
        sec.prune(model, INPUTS, method="reap", amount=0.75, data=[INPUTS], **QUIET)


def test_a_budget_counts_what_goes_with_experts() -> None:
    model = mixtral()
    keep = {"params": 0.7}
    result = sec.prune(model, INPUTS, method="reap", keep=keep, data=batches(), **QUIET)
    one = 2 * (3 * 32 * 24 + 32) / parameters(model)  # of both layers
    assert abs(parameters(result.model) / parameters(model) - 0.7) <= one


def test_ignored_modules_keep_all_and_no_config_says_it() -> None:
    model = mixtral()
    how: dict[str, Any] = {"ignore": ["model.layers.0.*"], "amount": 0.25, "data": batches()}
    result = sec.prune(model, INPUTS, method="reap", **how, **QUIET)
    assert [gap.module for gap in result.plan.dropped] == ["model.layers.1.mlp"]
    assert result.verification.ok and result.model.config.num_local_experts == 8


def test_what_cannot_be_meant_is_refused(tmp_path: Any) -> None:
    model, data = mixtral(), batches(1)
    with pytest.raises(PlanError, match="no routed experts"):
        sec.prune(nn.Linear(3, 3), torch.ones(1, 3), method="reap", data=[torch.ones(1, 3)],
                  **QUIET)  # fmt: skip
    with pytest.raises(BudgetError, match="routers choose several"):
        sec.prune(model, INPUTS, method="reap", amount=0.9, data=data, **QUIET)
    with pytest.raises(ConfigError, match="ignore"):
        sec.prune(model, INPUTS, method="reap", data=data, ignore=["nothing"], **QUIET)
    for experts, words in (((8,), "lacks"), (tuple(range(7)), "chooses 2 for every token")):
        with pytest.raises(PlanError, match=words):
            drop(model, [Gap("model.layers.0.mlp", experts=experts)])
    result = sec.prune(model, INPUTS, method="reap", amount=0.25, data=data, **QUIET)
    path = tmp_path / "plan.json"
    result.plan.save(path)
    assert sec.Plan.load(path).dropped == result.plan.dropped
    text = path.read_text()
    path.write_text(text.replace('"experts": [', '"experts": [-1, ', 1))
    with pytest.raises(StoreError):
        sec.Plan.load(path)
