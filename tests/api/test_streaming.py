"""``sec.sparsify_folder``: bit for bit what ``sec.sparsify`` gives, a block at a time."""

import copy
import doctest
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import secateur as sec
from secateur import streaming
from secateur.engine import layerwise, shards
from secateur.errors import ConfigError, DataError, SecateurError, StoreError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
MORE = {"num_key_value_heads": 2, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
MODELS: dict[str, Any] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **MORE, tie_word_embeddings=True)),
    "mixtral": lambda: hf.MixtralForCausalLM(  # its experts are stacked when they are loaded
        hf.MixtralConfig(**SIZES, **MORE, num_local_experts=4)
    ),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**SIZES, embedding_size=16)),  # one block
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
}
IDS = torch.randint(0, 100, (4, 16), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row[None]} for row in IDS]


def checkpoint(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Written to some files and an index; the model as it is read from them."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / shards.INDEX).exists()
    return type(model).from_pretrained(folder).eval()


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.name: load_file(p) for p in sorted(folder.glob("model*.safetensors"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_that_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "dense", name)
    before = contents(tmp_path / "dense")
    batches = [{**b, "decoder_input_ids": IDS[:1, :8]} for b in DATA] if name == "t5" else DATA
    how = {"amount": 0.5, "data": batches, "progress": False}
    whole = sec.sparsify(model, "sparsegpt", **how)
    result = sec.sparsify_folder(tmp_path / "dense", tmp_path / "out", "sparsegpt", **how)
    assert result.masks == whole.masks and result.report.sparsity == 0.5
    assert [row.layer for row in result.report.rows] == [row.layer for row in whole.report.rows]
    again = type(model).from_pretrained(tmp_path / "out").state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(again[key], value), key
    assert contents(tmp_path / "dense") == before
    assert contents(tmp_path / "out").keys() == before.keys() | {
        "masks.safetensors",
        "sparsity.json",
    }
    for file, found in weights(tmp_path / "out").items():
        assert found.keys() == load_file(tmp_path / "dense" / file).keys()
        assert (tmp_path / "out" / file).stat().st_size == len(before[file])


def test_the_default_is_that_in_memory_with_equal_shares(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "dense")
    how = {"amount": 0.5, "data": DATA, "progress": False}
    whole = sec.sparsify(model, scope="uniform", **how)
    result = sec.sparsify_folder(tmp_path / "dense", tmp_path / "out", **how)
    assert result.masks == whole.masks and result.report.method == whole.report.method == "admm"


def test_no_data_no_forward(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "dense")
    result = sec.sparsify_folder(
        tmp_path / "dense", tmp_path / "out", "magnitude", pattern="2:4", progress=False
    )
    assert result.masks == sec.sparsify(model, "magnitude", pattern="2:4", progress=False).masks


def test_computing_in_another_type_than_the_stored_one(tmp_path: Path) -> None:
    """bf16 on disk, float32 while pruning: masks of float32, and a block sees what is stored."""
    model = checkpoint(tmp_path / "dense", dtype=torch.bfloat16).float()
    how = {"amount": 0.5, "data": DATA, "progress": False}
    whole = sec.sparsify(model, "wanda", **how)
    result = sec.sparsify_folder(
        tmp_path / "dense", tmp_path / "out", "wanda", dtype=torch.float32, **how
    )
    assert result.masks == whole.masks
    stored = [v for file in weights(tmp_path / "out").values() for v in file.values()]
    assert {v.dtype for v in stored} == {torch.bfloat16}
    rounded = sec.sparsify_folder(
        tmp_path / "dense", tmp_path / "rounded", "sparsegpt", dtype=torch.float32, **how
    )
    # By hand: SparseGPT on block 0, its weights rounded, then on block 1 alone.
    others = [["model.layers.1", "model.layers.2"], ["model.layers.0", "model.layers.2"]]
    first = sec.sparsify(model, "sparsegpt", ignore=others[0], **how).model
    name = "model.layers.1.mlp.down_proj.weight"
    rounding = copy.deepcopy(first)
    for p in rounding.parameters():
        p.data = p.data.bfloat16().float()
    exact, seen = (
        sec.sparsify(net, "sparsegpt", ignore=others[1], **how).model.get_parameter(name).bfloat16()
        for net in (first, rounding)
    )
    written = {n: v for file in weights(rounded.folder).values() for n, v in file.items()}[name]
    assert torch.equal(written, seen)
    assert not torch.equal(exact, seen)  # so that the rounding is seen


def test_one_block_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "dense")
    solve, seen = layerwise._solve_block, []

    def watch(step: Any, job: Any) -> Any:
        model = step.walk.model
        seen.append(
            {n.split("layers.")[-1][0] for n, p in model.named_parameters() if not p.is_meta}
        )
        return solve(step, job)

    monkeypatch.setattr(layerwise, "_solve_block", watch)
    sec.sparsify_folder(
        tmp_path / "dense", tmp_path / "out", "wanda", amount=0.5, data=DATA, progress=False,
        spill=True,
    )  # fmt: skip
    assert seen == [{str(i), "m"} for i in range(3)]  # "m": of the embedding and the last norm


def die_in(module: Any, name: str, after: int) -> None:
    """From now on, let a function kill the process when it is called once more often."""
    function, left = getattr(module, name), after

    def dying(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments)

    setattr(module, name, dying)


@pytest.mark.parametrize(
    ("where", "after", "left", "spill"),
    [
        ((layerwise, "_solve_block"), 1, [1, 2], True),  # before block 1
        ((shards, "_put"), 10, [1, 2], False),  # when some tensors of block 1 are written
        ((streaming, "_finish"), 0, [], False),  # when all blocks are finished
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    where: tuple[Any, str],
    after: int,
    left: list[int],
    spill: bool,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    checkpoint(tmp_path / "dense")
    dense, out = tmp_path / "dense", tmp_path / "out"
    how = {"amount": 0.5, "data": DATA, "progress": False}
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    child = os.fork()
    if not child:
        die_in(*where, after)
        try:
            sec.sparsify_folder(dense, out, "sparsegpt", spill=spill, **how)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    solve, solved = layerwise._solve_block, []
    monkeypatch.setattr(
        layerwise, "_solve_block", lambda step, job: solved.append(step.number) or solve(step, job)
    )
    with pytest.raises(StoreError, match=r"another run \(target differ"):
        sec.sparsify_folder(dense, out, "sparsegpt", **{**how, "amount": 0.6})
    sec.sparsify_folder(dense, out, "sparsegpt", spill=spill, **how)
    assert solved == left
    sec.sparsify_folder(dense, tmp_path / "whole", "sparsegpt", **how)
    mine, theirs = contents(tmp_path / "out"), contents(tmp_path / "whole")
    times = mine.pop("sparsity.json"), theirs.pop("sparsity.json")
    assert mine == theirs and times[0] != times[1]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def longer(folder: Path) -> dict[str, Any]:
    return {"data": [{"input_ids": torch.zeros(1, 65, dtype=torch.long)}]}


def foreign(folder: Path) -> dict[str, Any]:
    return {"data": [{"input_ids": torch.full((1, 8), 100)}]}


def shard_missing(folder: Path) -> dict[str, Any]:
    next(folder.glob("model-00002*")).unlink()
    return {}


def other_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    return {}


def quantized(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return {}


def no_config(folder: Path) -> dict[str, Any]:
    (folder / "config.json").unlink()
    return {}


def out_exists(folder: Path) -> dict[str, Any]:
    return {"out": folder}


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (longer, DataError, "at most 64"),
        (foreign, DataError, "own tokenizer"),
        (shard_missing, StoreError, "is not there"),
        (other_config, StoreError, "its config belongs to another checkpoint"),
        (quantized, ConfigError, "quantized"),
        (no_config, ConfigError, "holds no config"),
        (out_exists, StoreError, "there already"),
    ],
)
def test_bad_input_is_named_and_the_source_untouched(
    wrong: Any, kind: type[SecateurError], words: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path / "dense")
    arguments = {"out": tmp_path / "out", "data": DATA, "amount": 0.5, **wrong(tmp_path / "dense")}
    before = contents(tmp_path / "dense")
    with pytest.raises(kind, match=words):
        sec.sparsify_folder(tmp_path / "dense", method="wanda", progress=False, **arguments)
    assert contents(tmp_path / "dense") == before
    assert not (tmp_path / "out").exists()


def test_a_method_that_needs_the_whole_model_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "dense")
    with pytest.raises(ConfigError, match="woodfisher needs gradients"):
        sec.sparsify_folder(tmp_path / "dense", tmp_path / "out", "woodfisher", data=DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "dense")
    put, count = shards._put, 0

    def full(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise OSError(28, "No space left on device")
        put(*arguments)

    how = {"amount": 0.5, "data": DATA, "progress": False}
    monkeypatch.setattr(shards, "_put", full)
    with pytest.raises(StoreError, match="No space left"):
        sec.sparsify_folder(tmp_path / "dense", tmp_path / "out", "wanda", **how)
    assert not (tmp_path / "out").exists()
    result = sec.sparsify_folder(tmp_path / "dense", tmp_path / "out", "wanda", **how)
    assert result.report.sparsity == 0.5 and len(result.report.rows) == 21


def test_a_folder_is_for_the_other_function() -> None:
    with pytest.raises(ConfigError, match="sparsify_folder"):
        sec.sparsify("folder", "magnitude")  # type: ignore[arg-type]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(streaming, extraglobs={"batches": DATA}) == (0, 2)
