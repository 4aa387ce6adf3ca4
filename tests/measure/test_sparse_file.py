"""Sparse tensors on disk: equal to scipy's parts, of the promised sizes, and the same when read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import ConfigError, StoreError
from secateur.measure.sparse_file import PARTS, encode, load_sparse, save_sparse, smallest
from secateur.measure.storage import words

SPARSE = [n for n in PARTS if n != "dense"]


def sparse(shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.rand(shape, generator=generator) + 0.1
    return (tensor * (torch.rand(shape, generator=generator) < density)).to(dtype)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 3, 3, 3), (1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("format", PARTS)
def test_what_is_read_is_what_was_written_in_so_many_words(
    format: str, shape: tuple[int, ...], density: float, tmp_path: Path
) -> None:
    tensor = sparse(shape, density)
    parts = encode(tensor, format)
    taken = sum(t.numel() * t.element_size() for t in parts.values())
    assert -(-taken // 4) == words(tensor)[format]
    save_sparse(tmp_path / "w", {"a.weight": tensor, "b": torch.ones(3)}, format)
    read = load_sparse(tmp_path / "w")
    assert torch.equal(read["a.weight"], tensor) and torch.equal(read["b"], torch.ones(3))


@pytest.mark.parametrize("format", ["coo", "csr", "csc"])
def test_parts_are_those_of_scipys_arrays(format: str) -> None:
    scipy = pytest.importorskip("scipy.sparse")
    tensor = sparse((7, 2, 5), 0.3)
    theirs = getattr(scipy, f"{format}_array")(tensor.flatten(1).numpy())
    ours = {n: t.tolist() for n, t in encode(tensor, format).items()}
    if format == "coo":
        expected = {"values": theirs.data, "rows": theirs.row, "columns": theirs.col}
    else:
        which = "columns" if format == "csr" else "rows"
        expected = {"values": theirs.data, which: theirs.indices, "starts": theirs.indptr}
    assert ours == {n: a.tolist() for n, a in expected.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
def test_each_tensor_takes_the_smallest_format_and_keeps_its_type(dtype, tmp_path: Path) -> None:
    tensors = {str(d): sparse((40, 30), d, dtype) for d in (0.001, 0.02, 0.1, 0.5, 1.0)}
    tensors["tied"] = tensors["0.1"]
    for tensor in tensors.values():
        sizes = {
            f: sum(t.numel() * t.element_size() for t in encode(tensor, f).values()) for f in PARTS
        }
        assert sizes[smallest(tensor)] == min(sizes.values())
    save_sparse(tmp_path / "w", tensors)
    read = load_sparse(tmp_path / "w")
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == dtype
    if dtype == torch.float32:
        dense = sum(t.numel() * 4 for t in tensors.values())
        assert (tmp_path / "w").stat().st_size < 0.6 * dense


def test_what_is_not_finite_is_kept_and_the_smallest_floats_are_dense(tmp_path: Path) -> None:
    tensor = torch.tensor([[0.0, float("nan")], [float("inf"), 0.0]])
    short = torch.ones(4, 4).to(torch.float8_e4m3fn)
    save_sparse(tmp_path / "w", {"a": tensor, "b": short})
    read = load_sparse(tmp_path / "w")
    assert torch.equal(read["a"].isnan(), tensor.isnan()) and float(read["a"][1, 0]) == torch.inf
    assert torch.equal(read["b"].float(), short.float())


@pytest.mark.parametrize("format", SPARSE)
def test_a_damaged_file_is_one_error(format: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_sparse(path, {"a": sparse((6, 8), 0.4)}, format)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        parts = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    for name, part in parts.items():
        wrong = part + 100 if "values" not in name and "bits" not in name else part[:-1]
        save_file({**parts, name: wrong.contiguous()}, path, metadata)
        with pytest.raises(StoreError, match="damaged"):
            load_sparse(path)
        save_file({n: t for n, t in parts.items() if n != name}, path, metadata)
        with pytest.raises(StoreError, match="damaged"):
            load_sparse(path)
    about = json.loads(metadata["tensors"])
    for said in ({"format": "zip", "shape": [6, 8]}, {"format": format, "shape": [6, 4]}, 3):
        save_file(parts, path, {**metadata, "tensors": json.dumps({**about, "a": said})})
        with pytest.raises(StoreError, match="damaged"):
            load_sparse(path)
    path.write_bytes(b"no file")
    with pytest.raises(StoreError, match="no sparse file"):
        load_sparse(path)
    save_file(parts, path)
    with pytest.raises(StoreError, match="holds no sparse tensors"):
        load_sparse(path)


def test_what_cannot_be_encoded_is_said() -> None:
    with pytest.raises(ConfigError, match="did you mean 'csr'"):
        encode(torch.eye(2), "crs")
    with pytest.raises(ConfigError, match="no rows and columns"):
        encode(torch.ones(3), "csr")
