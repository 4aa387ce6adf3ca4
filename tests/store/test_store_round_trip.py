"""What is saved comes back, to the bit, on a fresh build and in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from stored_models import MODELS, build, halved, inputs, output
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import secateur as sec
from secateur.errors import StoreError
from secateur.graph import trace
from secateur.graph.forward import named_tensors
from secateur.plan import Plan
from secateur.plan.store import load, save


def exactly_equal(a, b):
    """Same names, types, shapes and bits; what is one tensor in one is one in the other."""
    first, second = (
        {**dict(m.named_parameters(remove_duplicate=False)),
         **dict(m.named_buffers(remove_duplicate=False))} for m in (a, b)
    )  # fmt: skip
    groups = [{n: id(t) for n, t in m.items()} for m in (first, second)]
    ties = [{frozenset(n for n in g if g[n] == i) for i in set(g.values())} for g in groups]
    return (
        first.keys() == second.keys()
        and ties[0] == ties[1]
        and all(t.dtype == second[n].dtype and torch.equal(t, second[n]) for n, t in first.items())
    )


@pytest.fixture(scope="module")
def elsewhere(pruned, tmp_path_factory):
    """What another process computes with every model, from nothing but the saved folders."""
    place = tmp_path_factory.mktemp("saved")
    for name in MODELS:
        _, plan, small = pruned(name)
        save(place / name, small, plan)
    script = Path(__file__).with_name("stored_models.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(place)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return load_file(place / "outputs.safetensors")


@pytest.mark.parametrize("how", ["plain", "meta"])
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_loaded_exactly_in_another_process(name, how, pruned, elsewhere):
    _, _, small = pruned(name)
    assert torch.equal(elsewhere[f"{name} {how}"], output(small, inputs(name)))


def test_heads_of_a_timm_vit_come_back_with_their_mended_calls(folder, pruned):
    _, plan, small = pruned("vit", ("head",))
    assert {c.split(":")[-1] for c in plan.keep} == {"head"} and plan.edits
    again = load(lambda: build("vit", 1), folder("vit", ("head",)))
    assert torch.equal(output(again, inputs("vit")), output(small, inputs("vit")))


@pytest.mark.parametrize("name", ["branches", "plain", "lstm", "encoder", "llama"])
def test_every_tensor_tie_and_type_is_the_same(name, folder, pruned):
    _, _, small = pruned(name)
    assert exactly_equal(small, load(build(name, 1), folder(name)))
    with torch.device("meta"):
        empty = build(name)
    assert exactly_equal(small, load(empty, folder(name)))


def test_a_shared_tensor_is_stored_once_and_equal_buffers_too(folder):
    path = folder("branches")
    with safe_open(path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "embed.weight" in names and "out.weight" not in names
    with safe_open(path / "buffers.safetensors", "pt") as file:
        assert list(file.keys()) == ["wave"]
    assert json.loads((path / "plan.json").read_text())["same"] == {"wave_again": "wave"}


def test_the_model_given_is_not_changed(folder):
    model = build("branches", 1)
    before = {n: (id(t), t.clone()) for n, t in named_tensors(model).items()}
    loaded = load(model, folder("branches"))
    after = named_tensors(model)
    assert all(id(after[n]) == i and torch.equal(after[n], t) for n, (i, t) in before.items())
    assert not {id(t) for t in named_tensors(loaded).values()} & {i for i, _ in before.values()}
    assert type(model) is type(build("branches")) and model.up.out_features == 20


class Largest(TorchDispatchMode):
    """Notes the largest tensor with values that any operator makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and not t.is_meta:
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return result


def test_loading_on_the_meta_device_makes_no_dense_tensor(folder, pruned):
    path = folder("resnet18")
    with torch.device("meta"):
        empty = build("resnet18")
    with Largest() as largest:
        loaded = load(empty, path)
    kept = max(4 * t.numel() for t in pruned("resnet18")[2].parameters())
    assert largest.bytes == kept < max(4 * t.numel() for t in empty.parameters())
    assert all(t.is_meta for t in named_tensors(empty).values())
    assert not any(t.is_meta for t in named_tensors(loaded).values())


def test_dtype_casts_the_weights_but_not_tables_or_counters(folder):
    loaded = load(build("branches"), folder("branches"), dtype=torch.bfloat16)
    assert loaded.up.weight.dtype == loaded.norm.running_mean.dtype == torch.bfloat16
    assert loaded.wave.dtype == torch.float32
    assert loaded.norm.num_batches_tracked.dtype == torch.int64


def test_device_says_where_the_model_goes(folder):
    loaded = load(build("plain"), folder("plain"), device="meta")
    assert all(t.is_meta for t in named_tensors(loaded).values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, "float16"])
def test_a_dtype_that_cannot_hold_weights_is_refused(dtype, folder):
    with pytest.raises(StoreError, match=r"dtype=.*give a floating type"):
        load(build("plain"), folder("plain"), dtype=dtype)


@pytest.mark.parametrize("device", ["foo", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_named(device, folder):
    with pytest.raises(StoreError, match=r"device=.* cannot be used here"):
        load(build("plain"), folder("plain"), device=device)


def test_the_dtype_that_was_saved_comes_back(tmp_path, pruned):
    model, plan, _ = pruned("plain")
    half = plan.apply(model).to(torch.bfloat16)
    save(tmp_path / "half", half, plan)
    loaded = load(build("plain"), tmp_path / "half")
    assert exactly_equal(half, loaded) and loaded.a.weight.dtype == torch.bfloat16


def test_frozen_parameters_stay_frozen_as_built(folder):
    model = build("plain")
    model.a.weight.requires_grad_(False)
    loaded = load(model, folder("plain"))
    assert not loaded.a.weight.requires_grad and loaded.b.weight.requires_grad


def test_a_loaded_model_trains(folder):
    loaded = load(build("branches"), folder("branches"))
    output = loaded(inputs("branches")).square().sum()
    output.backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_a_bias_that_recovery_added_comes_back(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    graph = trace(model, torch.randn(2, 4))
    plan = Plan.of(graph, halved(graph)).prepared()
    small = plan.apply(model)
    small[2].bias = nn.Parameter(torch.arange(3.0))
    save(tmp_path / "m", small, plan)
    fresh = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    loaded = load(fresh, tmp_path / "m")
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), small(x)) and fresh[2].bias is None


def test_the_folder_says_what_it_is(folder, pruned):
    path = folder("plain")
    small = pruned("plain")[2]
    text = (path / "README.md").read_text()
    count = sum(p.numel() for p in small.parameters())
    assert f"became {count:,}" in text and "sec.load" in text
    data = json.loads((path / "plan.json").read_text())
    assert data["format"] == "secateur-plan" and data["version"] == 2
    assert data["model"] == "Plain" and data["made_by"] == {"seed": 0}


def test_card_and_extra_are_kept(tmp_path, pruned):
    _, plan, small = pruned("plain")
    extra = {"accuracy": 0.9, "when": ("a", "b"), "nan": float("nan"), "torch": torch.float32}
    path = save(tmp_path / "m", small, plan, card="# Mine\n", extra=extra)
    assert (path / "README.md").read_text() == "# Mine\n"
    from secateur.plan.folder import read

    kept = read(path).extra
    assert kept == {"accuracy": 0.9, "when": ["a", "b"], "nan": "nan", "torch": "torch.float32"}


def test_a_stored_plan_prunes_another_checkpoint_without_tracing(tmp_path, pruned):
    _, plan, _ = pruned("branches")
    plan.save(tmp_path / "plan.json")
    stored = Plan.load(tmp_path / "plan.json")
    other = build("branches", 5)
    assert stored.graph is None
    expected, found = plan.apply(other), stored.apply(other)
    assert exactly_equal(expected, found)
    assert torch.equal(output(expected, inputs("branches")), output(found, inputs("branches")))


def test_a_plan_is_read_from_a_saved_folder_too(folder, pruned):
    _, plan, _ = pruned("plain")
    assert not Plan.load(folder("plain")).diff(plan)


def test_a_model_that_the_plan_did_not_make_is_not_saved(tmp_path, pruned):
    model, plan, _ = pruned("plain")
    with pytest.raises(
        StoreError, match=r"a\.weight has shape .*save the model that this plan made"
    ):
        save(tmp_path / "m", model, plan)
    assert not (tmp_path / "m").exists()


def test_extra_state_that_needs_pickle_is_refused(tmp_path):
    class Keeper(nn.Linear):
        def get_extra_state(self):
            return object()

    model = nn.Sequential(Keeper(4, 8), nn.Linear(8, 2))
    graph = trace(model, torch.randn(2, 4))
    plan = Plan.of(graph, halved(graph)).prepared()
    with pytest.raises(StoreError, match="0 keeps extra state"):
        save(tmp_path / "m", plan.apply(model), plan)


def test_the_public_names_do_it(tmp_path):
    model = build("plain")
    plan = sec.plan(sec.trace(model, inputs("plain")), amount=0.5)
    sec.save(tmp_path / "m", plan.apply(model), plan)
    loaded = sec.load(lambda: build("plain", 3), tmp_path / "m").eval()
    assert torch.equal(loaded(inputs("plain")), plan.apply(model)(inputs("plain")))


class Elsewhere(nn.Module):
    """Keeps a weight in a list too, and a table where no state is looked for."""

    def __init__(self, where):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.weights = [self.b.weight]
        table = torch.arange(4).flip(0)
        if where == "attribute":
            self.table = table
        elif where == "container":
            self.tables = {"one": [table]}
        self.reorder = (lambda x: x[:, table]) if where == "closure" else self._reorder
        self.where = where

    def _reorder(self, x):
        return x[:, self.table if self.where == "attribute" else self.tables["one"][0]]

    def forward(self, x):
        return self.a(self.reorder(x)).relu() @ self.weights[0].T + self.b.bias


@pytest.mark.parametrize("where", ["attribute", "container", "closure"])
def test_what_a_model_keeps_elsewhere_is_right_or_told(where, tmp_path):
    """References follow; a table without values, which the forward would read, is an error."""
    model, x = Elsewhere(where), torch.randn(2, 4)
    graph = trace(model, x)
    plan = Plan.of(graph, halved(graph)).prepared()
    small = plan.apply(model)
    save(tmp_path / "m", small, plan)
    loaded = load(Elsewhere(where), tmp_path / "m")
    assert torch.equal(loaded(x), small(x)) and loaded.weights[0] is loaded.b.weight
    with torch.device("meta"):
        empty = Elsewhere(where)
    with pytest.raises(StoreError, match=r"the model \(Elsewhere\) keeps a tensor .* on the CPU"):
        load(empty, tmp_path / "m")


class Growing(nn.Module):
    """Its forward makes its position table as long as the input needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x):
        if len(self.table) != len(x):
            self.table = torch.arange(len(x), dtype=x.dtype)
        return self.b(self.a(x).relu()) + self.table[:, None]


def test_a_table_that_the_forward_made_longer_is_saved_as_it_is(tmp_path):
    model = Growing()
    graph = trace(model, torch.randn(2, 4))
    plan = Plan.of(graph, halved(graph)).prepared()
    small = plan.apply(model)
    x = torch.randn(5, 4)
    expected = small(x)
    save(tmp_path / "m", small, plan)
    loaded = load(Growing(), tmp_path / "m")
    assert torch.equal(loaded.table, torch.arange(5.0)) and torch.equal(loaded(x), expected)
