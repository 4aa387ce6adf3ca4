"""A saved folder, read and checked as far as it can be without building the architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import StoreError
from secateur.files import read_text, regular_file
from secateur.plan.encode import LARGEST_FILE, decode
from secateur.plan.plan import Plan

PLAN, WEIGHTS, BUFFERS = "plan.json", "model.safetensors", "buffers.safetensors"


@dataclass(frozen=True)
class Folder:
    """A saved model as far as it is known without building the architecture.

    Attributes:
        path: The folder.
        plan: What was removed.
        files: Names of the files that hold the tensors.
        tensors: Name -> dtype and shape of what is in the weights and buffers.
        same: Buffers that equal another, which is stored in their place.
        added: Parameters that the original architecture had none of (a bias made by recovery).
        extra: What ``save`` was given beside the model.
    """

    path: Path
    plan: Plan
    files: tuple[str, ...]
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    same: Mapping[str, str]
    added: tuple[str, ...]
    extra: Mapping[str, Any]


def read(directory: str | Path) -> Folder:
    """Read and check everything in a saved folder that can be checked without the architecture.

    Raises:
        StoreError: A file is missing, damaged or changed.
    """
    path = Path(directory)
    where = path / PLAN
    if not path.exists():
        raise StoreError(f"the folder {path} does not exist: give the folder that save wrote.")
    if not path.is_dir():
        raise StoreError(f"{path} is not a folder: give the folder that save wrote.")
    plan, data = decode(read_text(where, LARGEST_FILE), str(where))
    if plan.edits is None:
        raise StoreError(f"{where} is a plan alone, without weights: use Plan.load and plan.apply.")
    tensors = _tables(path, data)
    same: Any = data.get("same")
    added: Any = data.get("added")
    extra: Any = data.get("extra")
    good = isinstance(same, dict) and isinstance(added, list) and isinstance(extra, dict)
    if not good or not {*map(str, same.values()), *map(str, added)} <= tensors.keys():
        raise StoreError(f"{where} cannot be used: its list of tensors is damaged. Save again.")
    everything = {n: tensors[same.get(n, n)] for n in (*tensors, *same)}
    wanted = {n: plan.shape(n) for n in plan.shapes}
    buffers = {*data["files"].get(BUFFERS, {}).get("tensors", ()), *same}
    for name, shape in wanted.items():
        if name not in everything:
            raise StoreError(f"{path} has no tensor {name!r}, which the plan names: save again.")
        own = name in buffers and shape == plan.shapes[name]  # the forward may have resized it
        if everything[name][1] != shape and not own:
            raise StoreError(
                f"{path}: tensor {name!r} has shape {everything[name][1]}, the plan makes {shape}: "
                "plan and weights are not of the same model. Save again."
            )
    strange = [n for n in everything if n not in wanted and n not in added]
    if strange:
        raise StoreError(f"{path} has a tensor {strange[0]!r} that the plan lacks: save again.")
    return Folder(path, plan, tuple(data["files"]), tensors, same, tuple(added), extra)


def _tables(path: Path, data: Mapping[str, Any]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The tensors that plan.json lists, once the files are known to hold exactly these."""
    where = path / PLAN
    files = data.get("files")
    if not isinstance(files, dict) or not {WEIGHTS} <= files.keys() <= {WEIGHTS, BUFFERS}:
        raise StoreError(f"{where} is a plan alone, without weights: use Plan.load and plan.apply.")
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, entry in files.items():
        table = entry.get("tensors") if isinstance(entry, dict) else None
        if not isinstance(table, dict):
            raise StoreError(f"{where} cannot be used: it does not say what is in {name}.")
        file = regular_file(path / name)
        found_digest = sha256_of(file)
        if entry.get("bytes") != file.stat().st_size or entry.get("sha256") != found_digest:
            raise StoreError(
                f"{file} is not the file that was saved with this plan (its size or sha256 "
                "differs): it is truncated, changed or of another model. Restore it, or save again."
            )
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {n: opened.get_slice(n) for n in opened.keys()}  # noqa: SIM118
                there = {n: [s.get_dtype(), list(s.get_shape())] for n, s in slices.items()}
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"{file} is not a safetensors file ({error}): save again.") from error
        if there != table:
            absent = object()
            other = next(
                n for n in (*there, *table) if there.get(n, absent) != table.get(n, absent)
            )
            raise StoreError(
                f"{file}: tensor {other!r} is {there.get(other)}, plan.json says "
                f"{table.get(other)}: they are not of the same model. Save again."
            )
        for n, (dtype, shape) in there.items():
            if n in found or dtype not in DTYPES:
                raise StoreError(
                    f"{file}: tensor {n!r} of type {dtype} cannot be used. Save again."
                )
            found[n] = (DTYPES[dtype], tuple(shape))
    return found


def tensors_of(folder: Folder) -> dict[str, Tensor]:
    """Every stored tensor, in memory of its own."""
    result: dict[str, Tensor] = {}
    for name in folder.files:
        try:
            with safe_open(folder.path / name, framework="pt") as file:
                for n in file.keys():  # noqa: SIM118
                    if n in folder.tensors:
                        result[n] = file.get_tensor(n).clone()
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{folder.path / name} changed while it was read ({error}): load again."
            ) from error
    for name, (dtype, shape) in folder.tensors.items():
        t = result.get(name)
        if t is None or t.dtype != dtype or tuple(t.shape) != shape:
            raise StoreError(f"{folder.path} changed while it was read ({name!r}): load again.")
    return result


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        StoreError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype."""
    return next(n for n, d in DTYPES.items() if d == dtype)
