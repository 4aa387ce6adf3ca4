"""Files of sparse tensors: COO, CSR, CSC or a bitmask, as small as ``storage.words`` says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import ConfigError, StoreError
from secateur.files import replacing
from secateur.names import unknown

FORMAT = "secateur-sparse-1"
PARTS: Mapping[str, tuple[str, ...]] = {
    "dense": ("values",),
    "coo": ("values", "rows", "columns"),
    "csr": ("values", "columns", "starts"),
    "csc": ("values", "rows", "starts"),
    "bitmask": ("values", "bits"),
}


def encode(tensor: Tensor, format: str) -> dict[str, Tensor]:
    r"""The parts of a tensor in a format; axes after the first are columns.

    Values keep their type. Indices are int32 (int64 from $2^{31}$ elements on), bits come eight a
    byte, lowest first. So a float32 tensor takes four times ``storage.words`` of bytes.

    Args:
        tensor: Of two or more dimensions, unless the format is "dense".
        format: "dense", "coo", "csr", "csc" or "bitmask".

    Raises:
        ConfigError: There is no such format, or the tensor has no columns.

    Example:
        >>> {n: t.tolist() for n, t in encode(torch.eye(2), "csr").items()}
        {'values': [1.0, 1.0], 'columns': [0, 1], 'starts': [0, 1, 2]}
    """
    if format not in PARTS:
        raise ConfigError(unknown("sparse format", format, PARTS))
    tensor = tensor.detach().cpu()
    if format == "dense":
        return {"values": tensor.contiguous().clone()}
    if tensor.dim() < 2:
        raise ConfigError(
            f"a tensor of shape {list(tensor.shape)} has no rows and columns: it is stored densely"
        )
    matrix = tensor.reshape(len(tensor), prod(tensor.shape[1:]))
    if format == "bitmask":
        mask = matrix.flatten() != 0
        packed = np.packbits(mask.numpy(), bitorder="little")
        return {"values": matrix.flatten()[mask], "bits": torch.from_numpy(packed)}
    index = torch.int32 if tensor.numel() < 2**31 else torch.int64
    if format == "csc":
        matrix = matrix.T
    major, minor = (matrix != 0).nonzero(as_tuple=True)
    values = matrix[major, minor]
    major, minor = major.to(index), minor.to(index)
    if format == "coo":
        return {"values": values, "rows": major, "columns": minor}
    counts = torch.bincount(major, minlength=len(matrix)).cumsum(0)
    starts = torch.cat([counts.new_zeros(1), counts]).to(index)
    return {"values": values, "rows" if format == "csc" else "columns": minor, "starts": starts}


def decode(parts: Mapping[str, Tensor], format: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that was encoded, zeros and all.

    Raises:
        ValueError: The parts do not fit each other or the shape.

    Example:
        >>> decode(encode(torch.eye(2), "bitmask"), "bitmask", (2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    values = parts["values"]
    if format == "dense":
        return values.reshape(shape)
    n, m = shape[0], prod(shape[1:])
    if format == "bitmask":
        if parts["bits"].dtype != torch.uint8 or len(parts["bits"]) != -(-n * m // 8):
            raise ValueError(f"{len(parts['bits'])} bytes do not hold {n * m} bits")
        bits = np.unpackbits(parts["bits"].numpy(), count=n * m, bitorder="little")
        at = torch.from_numpy(bits.view(np.bool_)).nonzero()[:, 0]
    else:
        lines = m if format == "csc" else n
        if format == "coo":
            major, minor = parts["rows"].long(), parts["columns"].long()
        else:
            counts = parts["starts"].long().diff()
            if len(counts) != lines or int(parts["starts"][0]) != 0 or bool((counts < 0).any()):
                raise ValueError(f"the starts are not of {lines} lines")
            minor = parts["rows" if format == "csc" else "columns"].long()
            major = torch.arange(lines).repeat_interleave(counts)
        if len(major) != len(minor):
            raise ValueError("there are more indices of one kind than of the other")
        rows, columns = (minor, major) if format == "csc" else (major, minor)
        if bool(((rows < 0) | (rows >= n) | (columns < 0) | (columns >= m)).any()):
            raise ValueError("an index is outside of the shape")
        at = rows * m + columns
    if len(at) != len(values):
        raise ValueError(f"{len(values)} values for {len(at)} places")
    return values.new_zeros(n * m).index_copy_(0, at, values).view(shape)


def smallest(tensor: Tensor) -> str:
    """The format in which a tensor takes the fewest bytes.

    Example:
        >>> smallest(torch.eye(100)), smallest(torch.ones(9, 9)), smallest(torch.ones(9))
        ('coo', 'dense', 'dense')
    """
    # Of floats of eight bits torch cannot ask which are zero.
    if tensor.dim() < 2 or (tensor.is_floating_point() and tensor.element_size() < 2):
        return "dense"
    n, m = len(tensor), prod(tensor.shape[1:])
    a, size = int(tensor.count_nonzero()), tensor.element_size()
    index = 4 if tensor.numel() < 2**31 else 8
    found = {
        "dense": n * m * size,
        "csr": a * (size + index) + (n + 1) * index,
        "csc": a * (size + index) + (m + 1) * index,
        "coo": a * (size + 2 * index),
        "bitmask": a * size + -(-n * m // 8),
    }
    return min(found, key=lambda name: found[name])


def save_sparse(path: str | Path, tensors: Mapping[str, Tensor], format: str | None = None) -> None:
    """Write tensors, as a state dict, to one safetensors file, whole or not at all.

    Args:
        path: The file; its folder is made.
        tensors: By name; those without columns are stored densely.
        format: Of all with columns; None takes the smallest for each.

    Raises:
        ConfigError: There is no such format.
        StoreError: The file cannot be written; what was there before is untouched.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/sparse.safetensors"
        >>> save_sparse(path, {"weight": torch.eye(4), "bias": torch.ones(4)}, "csr")
        >>> torch.equal(load_sparse(path)["weight"], torch.eye(4))
        True
    """
    parts: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for name, tensor in tensors.items():
        which = smallest(tensor) if format is None else format if tensor.dim() > 1 else "dense"
        about[name] = {"format": which, "shape": list(tensor.shape)}
        parts |= {f"{name}/{part}": t for part, t in encode(tensor, which).items()}
    metadata = {"format": FORMAT, "tensors": json.dumps(about)}
    try:
        with replacing(path) as temporary:
            save_file(parts, temporary, metadata)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"{path} could not be written: {error}. What was there before is untouched."
        ) from error


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read what ``save_sparse`` wrote, as plain tensors on the CPU, equal to those given.

    Raises:
        StoreError: The file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} is missing, truncated or no sparse file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise StoreError(
            f"{path} holds no sparse tensors ({FORMAT}): give the file save_sparse wrote"
        )
    try:
        found = {}
        for name, said in json.loads(metadata["tensors"]).items():
            own = {part: parts[f"{name}/{part}"] for part in PARTS[said["format"]]}
            found[name] = decode(own, said["format"], tuple(said["shape"]))
        return found
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error}): save it again") from error
