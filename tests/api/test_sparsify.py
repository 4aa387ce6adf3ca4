"""``sec.sparsify`` on tiny transformers: results, resuming, saving, and what is refused."""

import os
import signal
from pathlib import Path

import pytest
import torch
from test_streaming import die_in
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import secateur as sec
from secateur.engine import layerwise
from secateur.engine.masks import MaskSet
from secateur.engine.target import Solved, Solver, Target, keep_best
from secateur.errors import ConfigError, DataError, PlanError, StoreError
from secateur.methods import registry
from secateur.methods.registry import Method

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


METHODS = [
    n
    for n in sec.methods("after")
    if registry.find(n).solver is not None and n != "threshold"  # the weights say how much goes
]


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


def test_without_a_method_layers_lose_what_the_loss_feels_least() -> None:
    result = sec.sparsify(llama(), amount=0.5, data=batches(), progress=False)
    assert result.report.method == "admm"
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert len({row.removed / row.total for row in result.report.rows}) > 5
    for data in ([b["input_ids"] for b in batches()], [(b["input_ids"],) for b in batches()]):
        bare = sec.sparsify(llama(), amount=0.5, data=data, progress=False)
        assert bare.masks == result.masks
    pattern = sec.sparsify(llama(), pattern="2:4", data=batches(), progress=False)
    assert {row.removed / row.total for row in pattern.report.rows} == {0.5}
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(DataError, match="scope="):
        sec.sparsify(net, amount=0.5, data=[torch.randn(4, 8)], progress=False)


def test_the_default_knows_layers_by_their_products_and_not_by_their_class() -> None:
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**shape))  # its weights are (inputs, outputs)
    result = sec.sparsify(model, amount=0.5, data=batches(), progress=False)
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert len({row.removed / row.total for row in result.report.rows}) > 3
    torch.manual_seed(0)
    experts = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    result = sec.sparsify(experts, amount=0.5, data=batches(), progress=False)
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-3)


def test_the_default_runs_where_a_decoder_caches_what_it_reads_of_the_encoder() -> None:
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**shape, vocab_size=100, decoder_start_token_id=0))
    before = [m.config.use_cache for m in (model, model.encoder, model.decoder)]
    data = [{**batch, "labels": batch["input_ids"]} for batch in batches()]
    result = sec.sparsify(model, amount=0.5, data=data, progress=False)
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert [m.config.use_cache for m in (model, model.encoder, model.decoder)] == before


def test_a_method_that_takes_no_pattern_says_so() -> None:
    with pytest.raises(ConfigError, match="threshold takes no pattern"):
        sec.sparsify(llama(), "threshold", pattern="2:4", progress=False)


@pytest.mark.parametrize("method", [None, "magnitude", "wanda", "sparsegpt"])
def test_a_layer_that_a_pattern_does_not_fit_is_named(method: str | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    how: dict = {"pattern": "2:4", "data": [torch.randn(4, 3, 8, 8)], "progress": False}
    with pytest.raises(ConfigError, match=r"^0\.weight: 27 inputs .*ignore=\['0\.weight'\]"):
        sec.sparsify(net, method, **how)
    assert sec.sparsify(net, method, ignore=["0.weight"], **how).report.sparsity == 0.5


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


@pytest.mark.parametrize("true_sequential", [False, True])
def test_the_dense_stream_stays_dense_beside_the_pruned_one(true_sequential: bool) -> None:
    model, seen = llama(), {}
    with torch.no_grad():  # what the layers of the last block see in the dense model
        handles = [
            m.register_forward_hook(lambda _, x, __, n=n: seen.setdefault(n, []).append(x[0]))
            for n, m in model.named_modules()
            if n.startswith("model.layers.2.") and isinstance(m, nn.Linear)
        ]
        for batch in batches():
            model(**batch)
        for handle in handles:
            handle.remove()
    given = {}

    def solve(weight: torch.Tensor, stats: object, target: Target) -> Solved:
        given[stats.name] = (stats.cross, stats.gram)  # type: ignore[attr-defined]
        keep = keep_best(weight.abs(), target)
        return Solved(weight * keep, keep)

    method = Method(0.5, solver=Solver(solve), name="spy")
    result = sec.sparsify(
        llama(), method, data=batches(), propagate="both", true_sequential=true_sequential,
        progress=False,
    ).model  # fmt: skip
    name = "model.layers.2.mlp.down_proj"
    pruned = []
    handle = result.get_submodule(name).register_forward_hook(lambda _, x, __: pruned.append(x[0]))
    with torch.no_grad():
        for batch in batches():
            result(**batch)
    handle.remove()
    dense, now = (torch.cat(xs).flatten(0, 1) for xs in (seen[name], pruned))
    cross, gram = given[f"{name}.weight"]
    if true_sequential:  # else the layers of the last block are solved before it is run again
        torch.testing.assert_close(gram, now.T @ now / len(now), rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(cross, dense.T @ now / len(now), rtol=1e-3, atol=1e-8)
    assert not torch.allclose(cross, gram, rtol=1e-3, atol=1e-8)


def test_experts_see_other_tokens_in_the_dense_model_and_aim_at_their_own_outputs() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=8))
    result = sec.sparsify(
        model, "sparsegpt", amount=0.5, data=batches(), propagate="both", progress=False
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


def failing_at(block: int) -> Method:
    """Wanda, until a layer of that block comes."""

    def solve(weight: torch.Tensor, stats: object, target: Target) -> Solved:
        name = stats.name  # type: ignore[attr-defined]
        if f"layers.{block}." in name:
            raise DataError(f"{name} cannot be solved")
        keep = keep_best(weight.abs(), target)
        return Solved(weight * keep, keep)

    return Method(0.5, solver=Solver(solve), name="failing")


def test_a_model_is_pruned_in_place_whole_or_not_at_all(tmp_path: Path) -> None:
    model, before = llama(), llama()
    with pytest.raises(DataError, match="cannot be solved"):
        sec.sparsify(model, failing_at(1), data=batches(), inplace=True, progress=False)
    for name, p in before.named_parameters():
        assert torch.equal(p, model.get_parameter(name))
    result = sec.sparsify(
        model, "wanda", amount=0.5, data=batches(), inplace=True, progress=False,
        spill=tmp_path / "spill",
    )  # fmt: skip
    assert result.model is model and result.report.sparsity == 0.5
    assert not [*(tmp_path / "spill").iterdir()]
    with pytest.raises(DataError) as caught:
        sec.sparsify(
            llama(), failing_at(1), data=batches(), inplace=True, progress=False,
            checkpoint=tmp_path / "run",
        )  # fmt: skip
    assert any("pruned in part" in note for note in caught.value.__notes__)


def test_what_is_not_finite_is_refused_by_name() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for method in ("magnitude", "wanda"):
        with pytest.raises(DataError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
            sec.sparsify(model, method, amount=0.5, data=batches(), progress=False)
    model = llama()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[:] = 1e30  # overflows in the block itself
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(DataError, match=r"layers.1.* is NaN or infinite"):
        sec.sparsify(model, "wanda", amount=0.5, data=batches(), inplace=True, progress=False)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
