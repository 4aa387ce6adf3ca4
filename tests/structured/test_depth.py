"""Leaving out blocks and parts of blocks: what is left out, that it is right, and what is left."""

import copy
import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import torch
from tiny import batches, gpt2, llama, logits, parameters, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import BudgetError, ConfigError, PlanError, StoreError
from secateur.methods.after.evopress import _distance, evolve
from secateur.methods.after.shortgpt import block_influence
from secateur.methods.droppable import depth_of
from secateur.plan.gaps import Gap, drop, skipping

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}


def loss(model: nn.Module, data: Any) -> float:
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in data) / len(data)


def skipped(model: nn.Module, names: tuple[str, ...], data: Any) -> float:
    """By hand: blocks that hand on what they get, and parts that give zeros."""
    other = copy.deepcopy(model)

    def hand_on(_: Any, args: Any, output: Any) -> Any:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    def nothing(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * 0, *output[1:])
        return output * 0

    for name in names:
        part = name.rpartition(".")[2]
        other.get_submodule(name).register_forward_hook(hand_on if part.isdigit() else nothing)
    return loss(other, data)


def layers(*numbers: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{k}" for k in numbers)


def dropped(result: Any) -> tuple[str, ...]:
    return tuple(gap.module for gap in result.plan.dropped)


def prune(model: nn.Module, method: Any, **how: Any) -> Any:
    return sec.prune(model, INPUTS, method=method, **{"data": batches(), **QUIET, **how})


def test_losses_without_blocks_are_those_of_a_model_that_skips_them() -> None:
    model, data = llama(4), batches(2)
    for parts in (False, True):
        depth = depth_of(model, data, parts=parts)
        gone, more = (
            [depth.candidates[1]],
            [g for g in depth.candidates if g != depth.candidates[1]],
        )
        found = depth.losses(gone, more)
        for gap in more:
            naive = skipped(model, (gone[0].module, gap.module), data)
            assert found[gap] == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_influence_is_one_minus_the_mean_cosine(build: Any) -> None:
    model, data = build(3), batches(2)
    naive = [0.0] * 3
    count = 0
    for batch in data:
        with torch.no_grad():
            blocks = model.model.layers if build is llama else model.transformer.h
            states: list[Tensor] = []
            hooks = [
                b.register_forward_pre_hook(lambda _, a, to=states: to.append(a[0])) for b in blocks
            ]
            last = blocks[-1].register_forward_hook(
                lambda _, __, o, to=states: to.append(o[0] if isinstance(o, tuple) else o)
            )
            model(input_ids=batch["input_ids"])
            for hook in (*hooks, last):
                hook.remove()
        for k in range(3):
            for x, y in zip(states[k].flatten(0, 1), states[k + 1].flatten(0, 1), strict=True):
                naive[k] += float(x @ y / x.norm() / y.norm())
        count += states[0].shape[0] * states[0].shape[1]
    assert block_influence(depth_of(model, data)) == pytest.approx([1 - n / count for n in naive],
                                                                   abs=1e-5)  # fmt: skip


def test_shortgpt_takes_the_least_influence() -> None:
    model, data = llama(4), batches()
    influence = block_influence(depth_of(model, data))
    lowest = sorted(range(4), key=lambda k: influence[k])[:2]
    assert dropped(prune(model, "shortgpt", amount=0.5)) == layers(*lowest)


def test_a_block_that_does_nothing_goes_first_and_is_not_missed() -> None:
    model = llama(4)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    for method in ("shortgpt", ("shortened_llama", {"by": "taylor"}), "sleb"):
        result = prune(model, method, amount=0.25)
        if method != "sleb":  # which another one may serve better than none
            assert dropped(result) == layers(2)
            assert_close(logits(result.model), logits(model), rtol=1e-4, atol=1e-5)
    assert abs(block_influence(depth_of(model, batches()))[2]) < 1e-6


def test_shortened_llama_equals_trying_each_block() -> None:
    model, data = llama(4), batches()
    by_hand = sorted(range(4), key=lambda k: skipped(model, layers(k), data))
    assert dropped(prune(model, "shortened_llama", amount=0.5)) == layers(*by_hand[:2])
    inner = prune(model, ("shortened_llama", {"first": 1, "last": 1}), amount=0.5)
    assert set(dropped(inner)) == set(layers(1, 2))
    model.zero_grad()
    for batch in data:
        (model(**batch).loss / len(data)).backward()
    sums = [
        sum(float((p.detach() * p.grad).abs().sum()) for p in block.parameters() if p.dim() == 2)
        for block in model.model.layers
    ]
    model.zero_grad(set_to_none=True)
    expected = sorted(range(4), key=lambda k: sums[k])[:2]
    assert dropped(prune(model, ("shortened_llama", {"by": "taylor"}), amount=0.5)) == layers(
        *expected
    )


def test_sleb_is_greedy_and_leaves_the_ends() -> None:
    model, data = llama(5), batches()
    gone: list[int] = []
    for _ in range(2):
        rest = [k for k in (1, 2, 3) if k not in gone]
        gone.append(min(rest, key=lambda k: skipped(model, layers(*gone, k), data)))
    result = prune(model, "sleb", amount=0.4)
    assert dropped(result) == layers(*gone)
    assert loss(result.model, data) == pytest.approx(skipped(model, layers(*gone), data), rel=1e-5)


def test_blockpruner_takes_attention_and_mlp_one_by_one() -> None:
    model, data = llama(2), batches()
    names = [f"model.layers.{k}.{part}" for k in range(2) for part in ("self_attn", "mlp")]
    gone: list[str] = []
    for _ in range(2):
        rest = [n for n in names if n not in gone]
        gone.append(min(rest, key=lambda n: skipped(model, (*gone, n), data)))
    result = prune(model, "blockpruner", amount=0.5)
    assert dropped(result) == tuple(gone)
    assert loss(result.model, data) == pytest.approx(skipped(model, tuple(gone), data), rel=1e-5)
    assert parameters(result.model) < parameters(model)


def test_evolution_finds_the_best_pair_of_few() -> None:
    model, data = llama(5), batches(2)

    def divergence(names: tuple[str, ...]) -> float:
        other = copy.deepcopy(model)
        total = 0.0
        with skipping(other, [Gap(n) for n in names]):
            for batch in data:
                p, q = (logits(m, batch["input_ids"]).log_softmax(-1) for m in (model, other))
                total += float((p.exp() * (p - q)).sum(-1).mean())
        return total

    best = min((layers(*pair) for pair in combinations(range(5), 2)), key=divergence)
    depth = depth_of(model, data)
    how = {"generations": 6, "offspring": 8, "survivors": 4}
    found = evolve(depth, lambda gaps: len(gaps) >= 2, **how)
    assert tuple(g.module for g in found) == best


def test_evolution_judges_by_the_divergence_from_the_dense_model() -> None:
    p, q = (torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    p, q = (3 * p).log_softmax(-1), q.log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert _distance((p, True), (q, True)) == pytest.approx(float(kl), rel=1e-5)
    assert abs(_distance((q, True), (p, True)) - float(kl)) > 0.1


def test_evolution_judges_a_model_without_logits_by_its_output() -> None:
    model, data = llama(5).model, batches(2)

    def distance(names: tuple[str, ...]) -> float:
        other = copy.deepcopy(model)
        total = 0.0
        with torch.no_grad(), skipping(other, [Gap(n) for n in names]):
            for batch in data:
                ids = batch["input_ids"]
                p, q = (m(ids, use_cache=False).last_hidden_state for m in (model, other))
                total += float((p - q).square().sum() / p.square().sum())
        return total

    pairs = [(f"layers.{a}", f"layers.{b}") for a, b in combinations(range(5), 2)]
    depth = depth_of(model, [{"input_ids": batch["input_ids"]} for batch in data])
    how = {"generations": 6, "offspring": 8, "survivors": 4}
    found = evolve(depth, lambda gaps: len(gaps) >= 2, **how)
    assert tuple(g.module for g in found) == min(pairs, key=distance)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("method", ["shortgpt", "blockpruner"])
def test_removal_is_proven_and_undoes_nothing_of_the_callers(
    build: Any, method: str, tmp_path: Any
) -> None:
    model = build(3)
    before = {n: p.clone() for n, p in model.named_parameters()}
    result = prune(model, method, amount=0.34)
    assert result.verification.ok and result.verification.proven
    assert result.verification.change > 1e-2
    assert before.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    loaded = sec.load(build(3), result.save(tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(result.model))
    with sec.masked(model, result.plan):
        assert_close(logits(model), logits(result.model), rtol=1e-4, atol=1e-5)
    into = build(3)
    assert sec.prune(into, INPUTS, method=method, amount=0.34, data=batches(), inplace=True,
                     **QUIET).model is into  # fmt: skip
    assert torch.equal(logits(into), logits(result.model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["shortgpt", "blockpruner"])
def test_generation_with_a_cache_equals_generation_without(
    attention: str, tied: bool, method: str
) -> None:
    model = llama(4, attn_implementation=attention, tie_word_embeddings=tied)
    small = prune(model, method, amount=0.5).model
    prompt = tokens(3, 5)
    prompt[0, :2] = 0  # padding on the left
    how: dict[str, Any] = {"attention_mask": (prompt != 0).long(), "max_new_tokens": 6,
                           "do_sample": False, "eos_token_id": None}  # fmt: skip
    cached, plain = (small.generate(prompt, use_cache=c, **how) for c in (True, False))
    assert torch.equal(cached, plain)
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_cache_is_as_long_as_the_text_where_the_first_attention_is_gone(build: Any) -> None:
    model = build(3)
    name = {llama: "model.layers.0.self_attn", gpt2: "transformer.h.0.attn"}[build]
    small: Any = drop(model, [Gap(name, outputs=2)])
    ids, whole = tokens(2, 6), logits(small, tokens(2, 6))
    with torch.no_grad():
        first = small(input_ids=ids[:, :4], use_cache=True)
        assert first.past_key_values.get_seq_length() == 4
        rest = small(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    assert_close(rest.logits, whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_an_encoder_loses_blocks_beside_a_decoder_with_a_config_of_its_own(tmp_path: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4,
                 decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    ).eval()  # fmt: skip
    with torch.no_grad():  # the least influence, but all others add the position bias it makes
        for name, p in model.encoder.block[0].named_parameters():
            p.mul_(not name.endswith((".o.weight", ".wo.weight")))
    how: dict[str, Any] = {"amount": 0.34, "data": batches(), **QUIET}
    result = sec.prune(model, batches(1)[0], method="shortgpt", **how)
    assert dropped(result) in (("encoder.block.1",), ("encoder.block.2",))
    assert result.verification.ok
    assert any("encoder.block.0" in note and "kept" in note for note in result.plan.notes)
    config, small = result.model.config, result.model
    assert (config.num_layers, config.num_decoder_layers) == (2, 3)
    assert (small.encoder.config.num_layers, small.decoder.config.num_layers) == (2, 3)
    with torch.no_grad():  # caches of the decoder are as long as the decoder
        kept = small(**batches(1)[0], use_cache=True).past_key_values
    assert len(kept.self_attention_cache.layers) == 3
    again = T5ForConditionalGeneration.from_pretrained(result.save(tmp_path / "out")).eval()
    assert_close(again(**batches(1)[0]).logits, small(**batches(1)[0]).logits)


def test_a_shallower_model_is_a_stock_model(tmp_path: Any) -> None:
    model = llama(4, tie_word_embeddings=True)
    result = prune(model, "shortgpt", amount=0.5)
    folder = result.save(tmp_path / "out")
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        "assert 'secateur' not in sys.modules and model.config.num_hidden_layers == 2\n"
        f"ids = torch.tensor({tokens().tolist()})\n"
        "print(float(model(input_ids=ids).logits.double().square().sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = float(logits(result.model).double().square().sum())
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)


def test_lists_of_the_config_lose_the_entries_of_what_is_gone() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = Qwen2Config(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, layer_types=kinds,
                         use_sliding_window=True, sliding_window=4, max_window_layers=1,
                         pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with pytest.raises(PlanError, match="cache in different ways"):
        depth_of(model, batches(1), parts=True)
    assert len(depth_of(model, batches(1), parts=True, ignore=["*.self_attn"]).candidates) == 3
    small = drop(model, layer_gaps(0))
    assert small.config.layer_types == kinds[1:]
    assert small.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]


def layer_gaps(*numbers: int) -> list[Gap]:
    return [Gap(name) for name in layers(*numbers)]


def test_other_networks_with_lists_of_blocks() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(x).tanh()

    net = nn.Sequential(
        nn.Linear(3, 6), nn.Sequential(*[Block() for _ in range(4)]), nn.Linear(6, 2)
    )
    data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
    result = sec.prune(net, data[0][0], method="sleb", amount=0.25, data=data, **QUIET)
    assert len(result.model[1]) == 3 and result.verification.ok


def test_a_budget_of_parameters() -> None:
    model = llama(4)
    result = prune(model, "shortgpt", keep={"params": 0.6})
    block = parameters(model.model.layers[0])
    assert abs(parameters(result.model) - 0.6 * parameters(model)) <= block / 2


@pytest.mark.parametrize(
    ("method", "how", "error", "words"),
    [
        ("shortgpt", {"amount": 0.5, "criterion": "l1"}, ConfigError, "criterion: a method that"),
        ("shortgpt", {"amount": 0.5, "schedule": "linear", "steps": 2}, ConfigError, "one step"),
        ("shortgpt", {"keep": {"macs": 0.5}}, ConfigError, "counted by parameters"),
        ("shortgpt", {"keep": {"params": 0.01}}, BudgetError, "cannot be met"),
        ("shortgpt", {"amount": 0.1}, BudgetError, "none of the 4 blocks.*removes one is 0.126"),
        ("blockpruner", {"amount": 0.05}, BudgetError, "none of the 8 .*removes one is 0.063"),
        ("shortgpt", {"amount": 0.5, "data": None}, sec.errors.DataError, "needs data"),
        ("sleb", {"amount": 0.9}, ConfigError, "too few blocks"),
        ("shortgpt", {"amount": 0.5, "ignore": ["layer.9"]}, ConfigError, "block or part"),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    method: str, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prune(llama(4), method, **how)


def test_the_least_amount_that_is_named_removes_one() -> None:
    assert len(dropped(prune(llama(4), "shortgpt", amount=0.126))) == 1
    whole = prune(llama(4), "shortgpt", keep={"params": 0.99})
    assert not dropped(whole) and any("nothing was removed" in n for n in whole.plan.notes)


def test_what_has_no_blocks_or_no_sums_is_told() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(PlanError, match="no list of blocks"):
        depth_of(net, [torch.randn(2, 3)])
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])
    with pytest.raises(PlanError, match="not its input plus"):
        depth_of(blocks, [torch.randn(2, 4)], parts=True)


def test_a_stored_plan_may_drop_blocks_only(tmp_path: Any) -> None:
    result = prune(llama(3), "shortgpt", amount=0.34)
    folder = result.save(tmp_path / "out")
    again = sec.Plan.load(folder)
    assert again.dropped == result.plan.dropped
    with pytest.raises(StoreError, match=r"with all its blocks|another architecture"):
        sec.load(llama(2), folder)
    for bad in (
        {"module": "a..b", "outputs": None},
        {"module": "x", "outputs": -1},
        {"module": "x"},
    ):
        from secateur.plan.encode import _dropped

        with pytest.raises(StoreError, match="names no block"):
            _dropped([bad], "plan.json")
