"""A stock config is written where one describes the pruned model, and only there."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from stored_models import build, inputs, output

from secateur.graph import trace
from secateur.plan import Plan
from secateur.plan.store import load, save

pytest.importorskip("transformers")


def pick(graph, choose, share=0.5):
    """Keep the first half (or another share) of every class that ``choose`` picks."""
    chosen = [c for c in graph.free.values() if choose(c)]
    return {c.name: torch.arange(max(1, int(c.size * share))) for c in chosen}


def mlp(c):
    return any(word in c.name for word in ("mlp", "intermediate", "fc1"))


def width(c):
    return c.kind == "width" or (c.size == 64 and not mlp(c))


def head(c):
    return c.kind == "head"


def query(c):
    return c.kind == "query"


def head_dim(c):
    return c.kind == "head_dim"


def any_of(*choices):
    return lambda c: any(choose(c) for choose in choices)


def qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                    num_attention_heads=8, num_key_value_heads=2)
    )  # fmt: skip


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                      num_attention_heads=8, num_key_value_heads=2, num_local_experts=4)
    )  # fmt: skip


OTHERS = {"qwen2": qwen2, "mixtral": mixtral}


def make(name):
    if name not in OTHERS:
        return build(name)
    torch.manual_seed(0)
    return OTHERS[name]().eval()


def given(name):
    return inputs("llama" if name in OTHERS else name)


EXPRESSIBLE = {
    "llama mlp": ("llama", mlp, {"intermediate_size": 48}),
    "llama width": ("llama", width, {"hidden_size": 32}),
    "llama queries": ("llama", query, {"num_attention_heads": 4}),
    "llama heads": ("llama", head, {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "llama all": (
        "llama",
        any_of(mlp, width, query),
        {"intermediate_size": 48, "hidden_size": 32, "num_attention_heads": 4},
    ),
    "bert mlp": ("bert", mlp, {"intermediate_size": 48}),
    "bert heads and width": (
        "bert",
        any_of(head, width),
        {"hidden_size": 32, "num_attention_heads": 4},
    ),
    "bert heads that shapes say nothing about": (
        "bert",
        any_of(head, width, mlp),
        {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 72},
    ),
    "gpt2 mlp, which its config leaves unsaid": ("gpt2", mlp, {"n_inner": 128}),
    "gpt2 width, with the mlp said": (
        "gpt2",
        any_of(head, width),
        {"n_embd": 32, "n_head": 2, "n_inner": 256},
    ),
    "qwen2 heads, whose width its config leaves unsaid": (
        "qwen2",
        head,
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
    ),
    "mixtral heads": (
        "mixtral",
        head,
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
    ),
}

THREE_QUARTERS = {"bert heads that shapes say nothing about"}

WITHOUT_SECATEUR = """
import json, sys
sys.modules["secateur"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
place = sys.argv[1]
found = {}
for name in json.load(open(f"{place}/names.json")):
    folder = f"{place}/{name}"
    kind = json.load(open(f"{folder}/config.json"))["architectures"][0]
    task = "MaskedLM" if "Bert" in kind else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{task}")
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == kind
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], report
    given = load_file(f"{folder}/given.st")
    with torch.no_grad():
        found[name] = model.eval()(**given).logits.contiguous()
save_file(found, f"{place}/found.st")
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Every expressible case saved, and what transformers alone makes of the folders."""
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("stock")
    expected = {}
    for name, (kind, choose, _) in EXPRESSIBLE.items():
        model = make(kind)
        graph = trace(model, given(kind))
        share = 0.75 if name in THREE_QUARTERS else 0.5
        plan = Plan.of(graph, pick(graph, choose, share)).prepared()
        assert plan.removed
        small = plan.apply(model)
        save(place / name, small, plan)
        save_file(given(kind), place / name / "given.st")
        expected[name] = output(small, given(kind))
    written = [n for n in EXPRESSIBLE if (place / n / "config.json").exists()]
    (place / "names.json").write_text(json.dumps(written))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_SECATEUR, str(place)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return place, expected, load_file(place / "found.st")


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_plain_transformers_loads_the_folder_and_computes_the_same(name, stock):
    _, expected, found = stock
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_config_says_the_new_sizes_and_nothing_else(name, stock):
    place, _, _ = stock
    kind, _, changes = EXPRESSIBLE[name]
    config = json.loads((place / name / "config.json").read_text())
    before = json.loads(make(kind).config.to_json_string())
    ours = {"architectures", "dtype"}
    changed = {k: v for k, v in config.items() if before.get(k) != v and k not in ours}
    assert changed == changes
    text = (place / name / "README.md").read_text()
    assert f"from transformers import {config['architectures'][0]}" in text


@pytest.mark.parametrize("name", ["llama all", "gpt2 width, with the mlp said"])
def test_the_same_folder_is_loaded_onto_the_original_too(name, stock):
    place, expected, _ = stock
    kind = EXPRESSIBLE[name][0]
    loaded = load(lambda: make(kind), place / name).eval()
    assert torch.equal(output(loaded, given(kind)), expected[name])


INEXPRESSIBLE = {
    "rotary dimensions": ("llama", head_dim, "rotary_emb"),
    "fewer heads of the old width": ("bert", head, "attention.self.query.weight"),
    "shapes that fit and a softmax scale that does not": (
        "bert",
        any_of(head_dim, width),
        "gives other outputs",
    ),
    "layers of different widths": (
        "llama",
        lambda c: mlp(c) and "layers.1" in c.name,
        "one number for all layers",
    ),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_where_no_stock_config_fits_the_readme_says_why(name, tmp_path):
    kind, choose, why = INEXPRESSIBLE[name]
    model = make(kind)
    graph = trace(model, given(kind))
    plan = Plan.of(graph, pick(graph, choose)).prepared()
    assert plan.removed
    small = plan.apply(model)
    path = save(tmp_path / "m", small, plan)
    assert not (path / "config.json").exists()
    text = (path / "README.md").read_text()
    assert "No stock config describes this shape" in text and why in text
    assert torch.equal(output(load(lambda: make(kind), path).eval(), given(kind)),
                       output(small, given(kind)))  # fmt: skip


def test_a_config_that_no_longer_fits_is_removed(tmp_path):
    model = make("llama")
    graph = trace(model, given("llama"))
    for choose, fits in ((mlp, True), (head_dim, False)):
        plan = Plan.of(graph, pick(graph, choose)).prepared()
        path = save(tmp_path / "m", plan.apply(model), plan)
        assert (path / "config.json").exists() == fits


def test_a_config_of_somebody_else_is_not_overwritten(tmp_path):
    from secateur.errors import StoreError

    model = make("llama")
    graph = trace(model, given("llama"))
    plan = Plan.of(graph, pick(graph, mlp)).prepared()
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(StoreError, match=r"config\.json was not written by an earlier save"):
        save(tmp_path, plan.apply(model), plan)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_plan_without_inputs_makes_no_claim(tmp_path):
    model = make("llama")
    graph = trace(model, given("llama"))
    plan = Plan.of(graph, pick(graph, mlp)).prepared()
    plan.save(tmp_path / "plan.json")
    stored = Plan.load(tmp_path / "plan.json")
    path = save(tmp_path / "m", stored.apply(model), stored)
    assert not (path / "config.json").exists()
    assert "no inputs to compare outputs on" in (path / "README.md").read_text()


def test_a_class_of_the_users_own_is_not_called_stock(tmp_path):
    from transformers import LlamaForCausalLM

    class Mine(LlamaForCausalLM):
        pass

    model = Mine(make("llama").config).eval()
    graph = trace(model, given("llama"))
    plan = Plan.of(graph, pick(graph, mlp)).prepared()
    path = save(tmp_path / "m", plan.apply(model), plan)
    assert "`Mine` is not a class of transformers" in (path / "README.md").read_text()


def test_saving_leaves_the_model_its_config_and_the_random_state(tmp_path):
    model = make("llama")
    graph = trace(model, given("llama"))
    plan = Plan.of(graph, pick(graph, mlp)).prepared()
    small = plan.apply(model).train()
    before = copy.deepcopy(small.state_dict())
    config = small.config.to_json_string()
    torch.manual_seed(3)
    random = torch.get_rng_state()
    save(tmp_path / "m", small, plan)
    assert torch.equal(torch.get_rng_state(), random)
    assert small.config.to_json_string() == config and small.training
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())


def test_a_low_precision_model_keeps_its_type(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make("llama").config, dtype=torch.bfloat16).eval()
    graph = trace(model, given("llama"))
    plan = Plan.of(graph, pick(graph, mlp)).prepared()
    small = plan.apply(model)
    path = save(tmp_path / "m", small, plan)
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert all(
        t.dtype == small.state_dict()[n].dtype and torch.equal(t, small.state_dict()[n])
        for n, t in loaded.state_dict().items()
    )
