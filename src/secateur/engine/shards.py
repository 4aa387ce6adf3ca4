"""Checkpoints on disk, tensor by tensor: safetensors files of any size, read and patched.

The data of a tensor lie in one piece at a place that the file's header names. So one tensor can be
read without the others, and written over without touching the others, which is how a checkpoint
larger than memory is pruned: its files are copied, and the weights that changed are patched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import StoreError
from secateur.files import replacing

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes ``start`` to ``stop`` of a file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shards:
    """The tensors of a folder, by name, wherever they lie.

    Attributes:
        folder: Where the files are.
        places: Of each tensor.
        digest: SHA-256 of all headers, which hold every name, type, shape and place.
    """

    folder: Path
    places: Mapping[str, Place]
    digest: str

    @property
    def files(self) -> list[str]:
        """Names of the safetensors files."""
        return sorted({place.file for place in self.places.values()})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    def identity(self) -> str:
        """The headers, and when each file was last written."""
        times = [(file, (self.folder / file).stat().st_mtime_ns) for file in self.files]
        return f"{self.digest} {times}"

    def read(self, name: str) -> Tensor:
        """One tensor, in the type in which it is stored.

        Raises:
            StoreError: The file has become unreadable.
        """
        place = self.places[name]
        value = torch.empty(place.stop - place.start, dtype=torch.uint8)
        try:
            with (self.folder / place.file).open("rb", buffering=0) as file:
                file.seek(place.start)
                _fill(file, value.numpy().data)
        except OSError as error:
            raise StoreError(f"{name} could not be read from {place.file}: {error}") from error
        return value.view(place.dtype).view(place.shape)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Write tensors over the ones that are there; they must have their types and shapes.

        Raises:
            StoreError: A tensor of another kind, or the file cannot be written.
        """
        for file in sorted({self.places[name].file for name in values}):
            path = self.folder / file
            try:
                with path.open("r+b", buffering=0) as opened:
                    for name, value in values.items():
                        if self.places[name].file == file:
                            opened.seek(self.places[name].start)
                            _put(opened, _bytes(name, value, self.places[name]))
                    os.fsync(opened.fileno())
            except OSError as error:
                raise StoreError(f"{path} could not be written: {error}") from error


def open_shards(folder: str | Path) -> Shards:
    """Read the headers of a checkpoint and check that every tensor is there, whole.

    Args:
        folder: Holds ``model.safetensors.index.json`` and the files it names, or
            ``model.safetensors``.

    Raises:
        StoreError: Files are missing, truncated, damaged or say other things than the index.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> folder = tempfile.mkdtemp()
        >>> save_file({"w": torch.arange(3.0)}, folder + "/model.safetensors")
        >>> open_shards(folder).read("w")
        tensor([0., 1., 2.])
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder: give the folder of a checkpoint")
    listed = _index(folder)
    if listed is None and not (folder / SINGLE).is_file():
        other = sorted(p.name for p in folder.glob("*.bin"))
        raise StoreError(
            f"{folder} holds neither {INDEX} nor {SINGLE}"
            + (f", only {other[0]}: save the model again as safetensors" if other else "")
        )
    names = sorted(set(listed.values())) if listed is not None else [SINGLE]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise StoreError(
            f"{folder}: {INDEX} names {absent[0]}, which is not there ({len(absent)} of "
            f"{len(names)} files are missing): download or copy the checkpoint again"
        )
    places: dict[str, Place] = {}
    hashes = hashlib.sha256()
    for name in names:
        found, header = read_header(folder / name)
        hashes.update(name.encode() + header)
        places |= found
    for tensor, file in (listed or {}).items():
        if tensor not in places or places[tensor].file != file:
            raise StoreError(
                f"{folder}: {INDEX} says that {tensor} is in {file}, but it is not: the index "
                "belongs to other files; copy the checkpoint again"
            )
    return Shards(folder, places, hashes.hexdigest())


def read_header(path: Path) -> tuple[dict[str, Place], bytes]:
    """The places of a safetensors file's tensors, and the header that says so.

    Raises:
        StoreError: It is no safetensors file, or data are missing at its end.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError("its first bytes are no length of a header")
            header = file.read(length)
        entries = json.loads(header)
        places = {
            name: Place(
                path.name,
                _TYPES[entry["dtype"]],
                tuple(entry["shape"]),
                *(8 + length + offset for offset in entry["data_offsets"]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        for name, place in places.items():
            if place.stop - place.start != prod(place.shape) * place.dtype.itemsize:
                raise ValueError(f"the size of {name} is not that of its type and shape")
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error}") from error
    except KeyError as error:
        raise StoreError(f"{path} holds tensors of a type that is not known: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is truncated or not a safetensors file ({error}): copy it again"
        ) from error
    end = max((place.stop for place in places.values()), default=8 + length)
    if end != size:
        raise StoreError(
            f"{path} has {size:,} bytes but its header describes {end:,}: it is "
            f"{'truncated' if size < end else 'damaged'}; copy it again"
        )
    return places, header


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    return json.loads(read_header(path)[1]).get("__metadata__", {})


def copy_files(files: Sequence[Path], target: Path) -> None:
    """Copy files that are not there yet into a folder, each whole or not at all.

    Links are followed, so that what is written over later is the copy.

    Raises:
        StoreError: There is no space, or a file cannot be read or written.
    """
    missing = [path for path in files if not (target / path.name).exists()]
    needed = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        needed, free = sum(p.stat().st_size for p in missing), shutil.disk_usage(target).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"only {free / 1e9:.1f} GB are free")
        for path in missing:
            with replacing(target / path.name) as temporary:
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise StoreError(
            f"{needed / 1e9:.1f} GB could not be copied to {target}: {error}. Free some space or "
            "choose another folder; what is copied is kept for the next run"
        ) from error


def join(parts: Iterable[Path], target: Path, metadata: Mapping[str, str]) -> None:
    """Write one safetensors file that holds the tensors of others, without holding them at once.

    Raises:
        StoreError: A file cannot be read or written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    pieces: list[tuple[Path, int]] = []
    end = 0
    for path in parts:
        _, text = read_header(path)
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                offsets = [end + offset for offset in entry["data_offsets"]]
                header[name] = {**entry, "data_offsets": offsets}
        pieces.append((path, 8 + len(text)))
        end += path.stat().st_size - 8 - len(text)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the format's own library does, so that data are aligned
    try:
        with replacing(target) as temporary, temporary.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for path, start in pieces:
                with path.open("rb") as file:
                    file.seek(start)
                    shutil.copyfileobj(file, out, 1 << 20)
    except OSError as error:
        raise StoreError(f"{target} could not be written: {error}") from error


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor -> file, where there is an index; files are plain names inside the folder."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        listed = json.loads(path.read_text("utf-8"))["weight_map"]
        if not listed or not all(Path(name).name == name for name in listed.values()):
            raise ValueError("weight_map must give names of files in this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error}): copy the checkpoint again") from error
    return listed


def _bytes(name: str, value: Tensor, place: Place) -> memoryview:
    if value.shape != place.shape or value.dtype != place.dtype:
        raise StoreError(
            f"{name} is {value.dtype}{list(value.shape)}, but the checkpoint holds "
            f"{place.dtype}{list(place.shape)}"
        )
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _fill(file: Any, view: memoryview) -> None:
    """Read until the buffer is full: one call gives at most 2 GiB."""
    while len(view):
        count = file.readinto(view)
        if not count:
            raise OSError("the file ends before its data do")
        view = view[count:]


def _put(file: Any, view: memoryview) -> None:
    while len(view):
        view = view[file.write(view) :]
