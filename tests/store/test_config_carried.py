"""A pruned transformers model tells its own shape, so that its ``save_pretrained`` is enough."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_models import build, inputs
from torch import nn

import secateur as sec
from secateur.plan.alike import distance_of, enlarged, outputs_of, tolerance

pytest.importorskip("transformers")
UNTIMED: dict[str, Any] = {"progress": False, "measure": False}


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                 decoder_start_token_id=0)
    ).eval()  # fmt: skip


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_hidden_layers": 2}  # fmt: skip
    return CLIPModel(
        CLIPConfig(
            text_config={**sizes, "vocab_size": 97, "max_position_embeddings": 16,
                         "bos_token_id": 0, "eos_token_id": 96, "pad_token_id": 1},
            vision_config={**sizes, "image_size": 16, "patch_size": 8, "intermediate_size": 40},
            projection_dim=24,
        )
    ).eval()  # fmt: skip


def made(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    ids = torch.arange(12).reshape(2, 6) * 7 % 97
    if name == "t5":
        return t5(), {"input_ids": ids, "decoder_input_ids": ids[:, :4].contiguous()}
    if name == "clip":
        image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return clip(), {"input_ids": ids, "pixel_values": image}
    return build(name), inputs(name)


CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "llama": ({}, {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
                   "num_key_value_heads": 1}),
    "bert": ({}, {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}),
    "gpt2": ({"kinds": ["channel", "head"], "ignore": ["*.attn.*"]}, {"n_inner": 128}),
    "t5": ({}, {"d_ff": 24, "num_heads": 2}),
    "clip": ({"kinds": "channel"}, {"text_config.intermediate_size": 24,
                                    "vision_config.intermediate_size": 20}),
}  # fmt: skip
GENERATES = ("llama", "gpt2", "t5")

WITHOUT_SECATEUR = """
import json, sys
sys.modules["secateur"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
place = sys.argv[1]
found = {}
for name, kind in json.load(open(f"{place}/names.json")).items():
    model, report = getattr(transformers, kind).from_pretrained(
        f"{place}/{name}", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], report
    given = load_file(f"{place}/{name}/given.st")
    with torch.no_grad():
        found[name] = model.eval()(**given)[0].contiguous()
    if name in json.loads(sys.argv[2]):
        for cache in ("dynamic", "static"):
            found[f"{name} {cache}"] = model.generate(
                given["input_ids"], do_sample=False, max_new_tokens=5, cache_implementation=cache
            )
save_file(found, f"{place}/found.st")
"""


def sizes(config: object, names: Iterable[str]) -> dict[str, object]:
    return {name: attrgetter(name)(config) for name in names}


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``sec.prune`` made of each model, and what transformers alone loads of its folder."""
    place = tmp_path_factory.mktemp("carried")
    results = {}
    for name, (options, _) in CASES.items():
        model, given = made(name)
        before = model.config.to_json_string()
        results[name] = sec.prune(model, given, amount=0.5, **options, **UNTIMED)
        assert model.config.to_json_string() == before
        results[name].model.save_pretrained(place / name)
        save_file(given, place / name / "given.st")
    kinds = {name: type(result.model).__name__ for name, result in results.items()}
    (place / "names.json").write_text(json.dumps(kinds))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_SECATEUR, str(place), json.dumps(GENERATES)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return results, load_file(place / "found.st")


@pytest.mark.parametrize("name", CASES)
def test_save_pretrained_writes_what_plain_transformers_loads(name: str, carried: Any) -> None:
    results, found = carried
    _, given = made(name)
    with torch.no_grad():
        expected = results[name].model.eval()(**given)[0]
    assert results[name].plan.removed and results[name].plan.notes == ()
    torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_config_says_the_new_sizes_wherever_it_is_held(name: str, carried: Any) -> None:
    model, (_, changes) = carried[0][name].model, CASES[name]
    assert sizes(model.config, changes) == changes
    inside = {id(model.config), *(id(getattr(model.config, n)) for n in model.config.sub_configs)}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and type(config) is type(model.config):
            assert sizes(config, changes) == changes
        elif config is not None:
            assert id(config) in inside


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", GENERATES)
def test_generation_with_a_cache_is_that_of_the_stock_model(
    name: str, cache: str, carried: Any
) -> None:
    results, found = carried
    _, given = made(name)
    tokens = results[name].model.generate(
        given["input_ids"], do_sample=False, max_new_tokens=5, cache_implementation=cache
    )
    assert torch.equal(tokens, found[f"{name} {cache}"])


def test_numbers_that_the_example_inputs_do_not_ask_for_follow_the_config(carried: Any) -> None:
    results, _ = carried
    stock = type(results["gpt2"].model)(results["gpt2"].model.config)
    ours, theirs = results["gpt2"].model.transformer.h[0], stock.transformer.h[0]
    assert vars(ours.mlp.c_fc)["nf"] == vars(theirs.mlp.c_fc)["nf"] == 128
    assert results["llama"].model.model.layers[0].self_attn.num_key_value_groups == 2


def test_where_no_stock_config_fits_it_stays_and_the_result_says_so() -> None:
    model, given = made("llama")
    before = model.config.to_json_string()
    result = sec.prune(
        model,
        given,
        overrides={"*layers.0.mlp*": 0.25, "*layers.1.mlp*": 0.5},
        amount=0.0,
        **UNTIMED,
    )
    assert result.model.config.to_json_string() == before
    (note,) = result.plan.notes
    assert "still tells the sizes before pruning" in note and "one number for all layers" in note
    assert result.report.notes == (note,)


def test_pruned_in_place_a_model_no_longer_shares_its_config() -> None:
    model, given = made("llama")
    other = type(model)(model.config)
    before = model.config.to_json_string()
    sec.prune(model, given, amount=0.5, inplace=True, **UNTIMED)
    assert sizes(model.config, CASES["llama"][1]) == CASES["llama"][1]
    assert model.model.config is model.config is model.model.layers[0].self_attn.config
    assert other.config.to_json_string() == before
    assert other.model.config is other.config


def test_a_class_of_ones_own_keeps_its_config_in_place_too() -> None:
    model, given = made("llama")

    class Mine(type(model)):  # type: ignore[misc]
        def __init__(self, config: Any, more: int) -> None:
            super().__init__(config)

    own = Mine(model.config, 3).eval()
    before = own.config.to_json_string()
    result = sec.prune(own, given, amount=0.5, inplace=True, **UNTIMED)
    assert result.model is own and own.config.to_json_string() == before
    assert "`Mine` cannot be built from a config" in result.plan.notes[0]


def test_a_class_of_ones_own_that_a_config_builds_is_loaded_by_its_own_from_pretrained(
    tmp_path: Path,
) -> None:
    model, given = made("bert")

    class Classifier(type(model).__mro__[1]):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.body = type(model.bert)(config)
            self.head = nn.Linear(config.hidden_size, 3)
            self.post_init()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(input_ids=input_ids).last_hidden_state[:, 0])

    result = sec.prune(Classifier(model.config).eval(), given, amount=0.5, **UNTIMED)
    result.model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path).eval()
    assert again.config.hidden_size < model.config.hidden_size and result.plan.notes == ()
    with torch.no_grad(), enlarged(again), enlarged(result.model):
        torch.testing.assert_close(again(**given), result.model(**given))


def test_removed_after_sparse_training_it_carries_its_config_too() -> None:
    model, given = made("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[40:] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = sec.attach(model, optimizer, "initial_magnitude", amount=0.0, steps=1)
    sparse = handle.finish(remove=True, example_inputs=given)
    assert sparse.model.config.intermediate_size == 40


class Inside(nn.Module):
    """Two models of transformers with one config object, in a module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        bert = made("bert")[0].bert
        self.a, self.b = (type(bert)(bert.config) for _ in range(2))
        self.c, _ = made("llama")
        self.config = self.c.config
        width = self.a.config.hidden_size
        self.head = nn.Linear(2 * width + self.c.config.vocab_size, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        a, b = (net(input_ids=input_ids).last_hidden_state[:, 0] for net in (self.a, self.b))
        return self.head(torch.cat([a, b, self.c(input_ids=input_ids).logits[:, 0]], -1))


def test_models_inside_a_module_of_ones_own_carry_their_configs(tmp_path: Path) -> None:
    model = Inside().eval()
    ids = {"input_ids": torch.arange(12).reshape(2, 6) * 7 % 89}
    whole = model.config
    before = [model.a.config.to_json_string(), whole.to_json_string()]
    overrides = {"a.*": 0.5, "b.*": 0.25}
    result = sec.prune(model, ids, amount=0.5, scope="uniform", overrides=overrides, **UNTIMED)
    assert [model.a.config.to_json_string(), whole.to_json_string()] == before
    small = result.model
    assert result.plan.notes == () and small.config is small.c.config is not whole
    assert small.a.config.intermediate_size < small.b.config.intermediate_size
    for inner in (small.a, small.b, small.c):
        assert inner.config.num_attention_heads < model.a.config.num_attention_heads
        inner.save_pretrained(tmp_path)
        again = type(inner).from_pretrained(tmp_path).eval()
        with torch.no_grad(), enlarged(again), enlarged(inner):
            torch.testing.assert_close(again(**ids)[0], inner(**ids)[0], rtol=1e-5, atol=1e-6)
    result.save(tmp_path / "saved")
    loaded = sec.load(Inside().eval(), tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**ids), small(**ids))


def test_a_config_with_other_heads_is_refused_though_the_weights_hardly_tell() -> None:
    model, given = made("bert")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.01 if p.dim() > 1 else 1)
    result = sec.prune(model, given, amount=0.5, ignore=["*.attention.*"], **UNTIMED)
    other = copy.deepcopy(result.model)
    for layer in other.bert.encoder.layer:
        layer.attention.self.num_attention_heads //= 2
        layer.attention.self.attention_head_size *= 2
        layer.attention.self.scaling /= 2**0.5
    with torch.no_grad():
        plain = [net(**given)[0] for net in (result.model, other)]
        shown = [outputs_of(net, given) for net in (result.model, other)]
        again = result.model(**given)[0]
    assert distance_of([plain[0]], [plain[1]]) < tolerance(model)
    assert distance_of(*shown) > 1e-3
    assert torch.equal(again, plain[0])


def test_numbers_that_are_not_finite_are_no_proof() -> None:
    one, other = torch.tensor([torch.nan, 2.0]), torch.tensor([1.0, 2.0])
    assert distance_of([one], [other]) == distance_of([other], [one]) == float("inf")
    assert distance_of([other], [other]) == 0
