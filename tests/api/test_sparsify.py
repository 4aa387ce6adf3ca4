"""``sec.sparsify`` on tiny transformers: results, resuming, saving, and what is refused."""

import os
import signal
from pathlib import Path

import pytest
import torch
from test_streaming import die_in
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import secateur as sec
from secateur.engine import layerwise
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, DataError, PlanError, StoreError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=64)).eval()


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(0, 100, (1, 32))} for _ in range(count)]


def output_error(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        x = batches(1)[0]["input_ids"]
        return float((model(x).logits - other(x).logits).square().mean())


METHODS = ["magnitude", "wanda", "sparsegpt", "sparseswaps", "reconstruct"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [{"amount": 0.5}, {"pattern": "2:4"}])
def test_half_of_every_layer_goes_and_the_dense_model_stays(method: str, how: dict) -> None:
    model, before = llama(), llama()
    result = sec.sparsify(model, method, data=batches(), progress=False, **how)
    assert result.report.sparsity == result.masks.sparsity == 0.5
    assert len(result.report.rows) == 21
    for name, p in result.model.named_parameters():
        if name in result.masks:
            assert bool((p[~result.masks[name]] == 0).all())
        else:
            assert torch.equal(p, before.get_parameter(name))
    assert output_error(model, before) == 0


def test_updates_make_up_for_what_the_same_mask_loses() -> None:
    errors = []
    for method in (("sparseswaps", {"swaps": 0}), "reconstruct"):  # both have Wanda's mask
        rows = sec.sparsify(llama(), method, amount=0.5, data=batches(), progress=False).report.rows
        errors.append([row.error for row in rows if row.block == "model.layers.0"])
    assert len(errors[0]) == 7
    assert all(made_up < lost for lost, made_up in zip(*errors, strict=True))


def test_a_given_mask_is_kept_and_only_made_up_for() -> None:
    model = llama()
    masks = sec.sparsify(model, "magnitude", amount=0.5).masks
    result = sec.sparsify(model, "reconstruct", masks=masks, data=batches(), progress=False)
    assert result.masks == masks


def test_amounts_and_ignore_go_by_name() -> None:
    result = sec.sparsify(
        llama(), "wanda", amount=0.5, data=batches(), ignore=["*.0.mlp"],
        amounts={"*.q_proj": 0.25}, progress=False,
    )  # fmt: skip
    removed = {row.layer: row.removed / row.total for row in result.report.rows}
    assert removed["model.layers.1.self_attn.q_proj.weight"] == 0.25
    assert removed["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert "model.layers.0.mlp.up_proj.weight" not in removed


@pytest.mark.parametrize("propagate", ["dense", "both"])
def test_the_other_ways_to_propagate_run(propagate: str) -> None:
    result = sec.sparsify(
        llama(), "reconstruct", amount=0.5, data=batches(), propagate=propagate, progress=False
    )
    assert result.report.sparsity == 0.5


def test_true_sequential_sees_what_the_layers_before_it_became() -> None:
    plain, anew = (
        sec.sparsify(
            llama(), "wanda", amount=0.5, data=batches(), true_sequential=t, progress=False
        ).masks
        for t in (False, True)
    )
    first = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(plain[first], anew[first]) and plain != anew


def test_experts_that_saw_no_token_are_kept_and_said() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=8))
    data = [{"input_ids": torch.tensor([[5]])}]  # two of eight experts
    result = sec.sparsify(model, "wanda", amount=0.5, data=data, progress=False)
    assert any("75% of model.layers.0.mlp.experts" in note for note in result.report.notes)
    name = "model.layers.0.mlp.experts.down_proj"
    lost = (~result.masks[name]).flatten(1).sum(1)
    assert sorted(lost.tolist()) == [0] * 6 + [1024] * 2


def test_what_is_saved_loads_without_secateur(tmp_path: Path) -> None:
    result = sec.sparsify(llama(), "wanda", amount=0.5, data=batches(), progress=False)
    folder = result.save(tmp_path / "out")
    again = LlamaForCausalLM.from_pretrained(folder)
    assert output_error(again, result.model) == 0
    assert MaskSet.load(folder / "masks.safetensors") == result.masks
    with pytest.raises(StoreError, match="already"):
        result.save(folder)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder, block = str(tmp_path / "checkpoint"), 1
    arguments = {"amount": 0.5, "data": batches(), "progress": False}
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    child = os.fork()
    if not child:
        die_in(layerwise, "_solve_block", block)
        try:
            sec.sparsify(llama(), "sparsegpt", checkpoint=folder, **arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    solved = []
    solve = layerwise._solve_block
    monkeypatch.setattr(
        layerwise, "_solve_block", lambda step, job: solved.append(step.number) or solve(step, job)
    )
    resumed = sec.sparsify(llama(), "sparsegpt", checkpoint=folder, **arguments)
    assert solved == list(range(block, 3))
    whole = sec.sparsify(llama(), "sparsegpt", **arguments)
    assert resumed.masks == whole.masks
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, resumed.model.get_parameter(name))
    with pytest.raises(StoreError, match="another run"):
        sec.sparsify(llama(), "sparsegpt", checkpoint=folder, **{**arguments, "amount": 0.6})


def test_bad_calibration_is_named() -> None:
    model, before = llama(), llama()

    def message(data: object, error: type[Exception] = DataError) -> str:
        with pytest.raises(error) as caught:
            sec.sparsify(model, "wanda", amount=0.5, data=data, progress=False)
        return str(caught.value)

    assert "needs calibration" in message(None)
    assert "no batch" in message([])
    assert "no token" in message([{"input_ids": torch.zeros(1, 0, dtype=torch.long)}])
    assert "tokenizer" in message([{"input_ids": torch.full((1, 8), 100)}])
    assert "at most 64" in message([{"input_ids": torch.zeros(1, 65, dtype=torch.long)}])
    assert "could not be run" in message([torch.randn(1, 8)])
    for name, p in before.named_parameters():
        assert torch.equal(p, model.get_parameter(name))
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_bad_arguments_are_named() -> None:
    for wrong, words in (
        ({"method": "sparsgpt"}, "did you mean 'sparsegpt'"),
        ({"amount": 0.6, "pattern": "2:4"}, "contradicts"),
        ({"pattern": "4:2"}, "how many"),
        ({"amount": 1.5}, "fraction"),
        ({"ignore": ["nothing"]}, "nothing"),
        ({"amounts": {"*.q_proj": 2.0}}, "fraction in"),
        ({"stride": 3}, "stride"),
    ):
        arguments = {"data": batches(), "method": "wanda", "progress": False, **wrong}
        with pytest.raises(ConfigError, match=words):
            sec.sparsify(llama(), **arguments)
    other = MaskSet({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2).bool()})
    with pytest.raises(PlanError, match="another model"):
        sec.sparsify(llama(), "wanda", data=batches(), masks=other, progress=False)


def test_an_error_says_that_the_users_own_model_is_half_pruned() -> None:
    """A model that breaks behind its first block; a copy is pruned unless it is asked for."""
    for inplace in (True, False):
        model, before = llama(), llama()
        for net in (model, before):
            net.get_parameter("model.layers.1.mlp.down_proj.weight").data.fill_(torch.inf)
        with pytest.raises(DataError, match="NaN or infinite") as caught:
            sec.sparsify(
                model, "wanda", amount=0.5, data=batches(), progress=False, inplace=inplace
            )
        changed = [n for n, p in model.named_parameters() if not p.equal(before.get_parameter(n))]
        said = "".join(getattr(caught.value, "__notes__", []))
        assert len(changed) == 14 * inplace
        assert (f"{len(changed)} tensors of the model are pruned already" in said) == inplace
