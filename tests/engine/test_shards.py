"""Checkpoints on disk, against the library whose format they have."""

import doctest
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.engine import shards, streamed
from secateur.engine.blocks import Block, find_blocks
from secateur.engine.shards import INDEX, SINGLE, copy_files, join, open_shards
from secateur.engine.streamed import SameNames, Streamed, weightless
from secateur.errors import StoreError


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    made = {f"t{i}": torch.randn(3, 5).to(kind) for i, kind in enumerate(kinds)}
    return {**made, "ids": torch.arange(7), "one": torch.tensor(2.5), "none": torch.zeros(0, 4)}


def sharded(folder: Path) -> Path:
    """Two files and an index."""
    folder.mkdir()
    names = list(tensors())
    where = {n: f"part-{i % 2}.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors()[n] for n in names if where[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def test_reading_is_as_the_library_reads(tmp_path: Path) -> None:
    found = open_shards(sharded(tmp_path / "a"))
    assert found.places.keys() == tensors().keys()
    for name, value in tensors().items():
        got = found.read(name)
        assert got.dtype == value.dtype and torch.equal(got, value)


def test_writing_changes_one_tensor_and_nothing_else(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a")
    new = {"t1": torch.ones(3, 5, dtype=torch.bfloat16), "t2": torch.ones(3, 5).half().T.clone().T}
    open_shards(folder).write(new)
    found = {n: v for file in folder.glob("*.safetensors") for n, v in load_file(file).items()}
    for name, value in {**tensors(), **new}.items():
        assert torch.equal(found[name], value)


def test_a_tensor_of_another_kind_is_not_written(tmp_path: Path) -> None:
    found = open_shards(sharded(tmp_path / "a"))
    for wrong in (torch.ones(3, 5), torch.ones(5, 3).bfloat16()):
        with pytest.raises(StoreError, match="t1 is"):
            found.write({"t1": wrong})
    assert torch.equal(found.read("t1"), tensors()["t1"])


def test_joined_files_are_one(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "a")
    join(sorted(folder.glob("*.safetensors")), tmp_path / "all", {"said": "so"})
    found = load_file(tmp_path / "all")
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[n], v) for n, v in tensors().items())


def absent(folder: Path) -> None:
    (folder / "part-1.safetensors").unlink()


def truncated(folder: Path) -> None:
    path = folder / "part-1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def cut_in_the_header(folder: Path) -> None:
    path = folder / "part-1.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def too_long(folder: Path) -> None:
    with (folder / "part-1.safetensors").open("ab") as file:
        file.write(b"...")


def no_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t0": "../part-1.safetensors"}}))


def elsewhere(folder: Path) -> None:
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    listed["t0"] = listed["t1"]
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))


def nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "pytorch_model.bin").touch()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (absent, r"names part-1\.safetensors, which is not there"),
        (truncated, "truncated"),
        (cut_in_the_header, "truncated"),
        (too_long, "damaged"),
        (no_index, "index.json is damaged"),
        (outside, "files in this folder"),
        (elsewhere, "says that t0 is in"),
        (nothing, r"only pytorch_model\.bin"),
        (shutil.rmtree, "not a folder"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    folder = sharded(tmp_path / "a")
    damage(folder)
    with pytest.raises(StoreError, match=words):
        open_shards(folder)


def test_a_disk_that_is_full_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder = sharded(tmp_path / "a")
    files = sorted(folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="Free some space"):
        copy_files(files, tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())


class Net(nn.Module):
    """Blocks, a table outside of them, buffers that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(3)
        )
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("scale", torch.linspace(0, 1, 4), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def with_weights_of(net: nn.Module, folder: Path) -> Streamed:
    folder.mkdir()
    state = {n: v for n, v in net.state_dict().items() if n != "head.weight"}
    save_file(state, folder / SINGLE)
    found = open_shards(folder)
    with weightless():
        empty = Net()
    return Streamed(empty, found, found, SameNames({n: n for n in found.places}))


def test_a_model_without_weights_computes_as_the_whole_one(tmp_path: Path) -> None:
    """Any module, not only those of transformers: ties, buffers, running statistics."""
    net, ids = Net(), torch.tensor([1, 2, 3])
    net(ids)  # moves the running statistics
    net.eval()
    here = with_weights_of(net, tmp_path / "a")
    here.model.eval()
    assert all(p.is_meta for p in here.model.parameters())
    parts = [block.name for block in find_blocks(here.model)]
    assert parts == ["blocks.0", "blocks.1", "blocks.2"]
    here.outside(parts)
    with here.passing(parts):
        assert torch.equal(here.model(ids), net(ids))
    assert [n for n, p in here.model.named_parameters() if not p.is_meta] == ["words.weight"]


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    here = with_weights_of(Net(), tmp_path / "a")
    places = {n: n for n in here.names.places if n != "blocks.1.0.weight"}
    here.names = SameNames(places)
    with pytest.raises(StoreError, match=r"lacks blocks\.1\.0\.weight"), here(Block("blocks.1")):
        pass


def test_the_examples_run() -> None:
    for module in (shards, streamed):
        assert doctest.testmod(module, extraglobs={"torch": torch, "nn": nn}).failed == 0
