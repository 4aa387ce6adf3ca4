"""Exact resume: nested state in one safetensors file, written whole or not at all."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import StoreError
from secateur.files import replacing

FORMAT = "secateur-state-1"


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write nested state to ``path``; a kill at any moment leaves the old file or the new one.

    Tensors become the safetensors entries, everything around them JSON in the header, with a digest
    of both; nothing in the file can execute code.

    Args:
        path: the file; its folder is made.
        state: dicts (string or integer keys), lists, tuples, tensors, numbers, strings, booleans
            and None. A tensor that occurs twice is stored once, and is one tensor when loaded.

    Raises:
        StoreError: a value of another kind (the message names it), or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/state.safetensors"
        >>> save_state(path, {"step": 3, "weights": torch.nn.Linear(2, 2).state_dict()})
        >>> load_state(path)["step"]
        3
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, "", tensors, {}))
    metadata = {"format": FORMAT, "structure": structure, "digest": _digest(structure, tensors)}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"{path} could not be written: {error}. What was there before is untouched; "
            "free some space or choose another folder."
        ) from error


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote; tensors come back on the CPU.

    Raises:
        StoreError: the file is missing, truncated, tampered with or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path} does not exist: check the folder, or start without a checkpoint.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"{path} is truncated or not a safetensors file ({error}): delete it and start again."
        ) from error
    structure = metadata.get("structure", "")
    if metadata.get("format") != FORMAT:
        raise StoreError(f"{path} is not a saved state ({FORMAT}): give the file save_state wrote.")
    if metadata.get("digest") != _digest(structure, tensors):
        raise StoreError(f"{path} was changed after it was written: delete it and start again.")
    try:
        return _unpack(json.loads(structure), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} has a damaged header ({error}): start again.") from error


def rng_state() -> dict[str, Any]:
    """The states of the torch (CPU and CUDA), Python and NumPy global generators."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": np.asarray(keys).tolist(),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put every global generator back to what ``rng_state`` saw."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    keys = np.asarray(numpy["keys"], dtype=np.uint32)
    np.random.set_state(
        (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"])
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and every byte."""
    return _digest("", {name: _plain(tensor) for name, tensor in tensors.items()})


def _pack(value: Any, where: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": _add(value, where, tensors, seen)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {k: _pack(v, f"{where}.{k}", tensors, seen) for k, v in value.items()}
        if all(isinstance(key, int | str) for key in value):
            items = value.items()
            return {"$dict": [[k, _pack(v, f"{where}.{k}", tensors, seen)] for k, v in items]}
        raise StoreError(f"state{where} has keys that are neither strings nor integers.")
    if isinstance(value, list | tuple):
        items_ = [_pack(v, f"{where}.{i}", tensors, seen) for i, v in enumerate(value)]
        return items_ if isinstance(value, list) else {"$tuple": items_}
    raise StoreError(
        f"state{where} is a {type(value).__name__}, which cannot be saved without pickle: keep "
        "tensors, numbers, strings, lists, tuples and dicts in the state."
    )


def _add(tensor: Tensor, where: str, tensors: dict[str, Tensor], seen: dict[Any, str]) -> str:
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        raise StoreError(
            f"state{where} is a {tensor.layout} tensor on {tensor.device}: only dense tensors that "
            "hold numbers can be saved."
        )
    place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    if tensor.numel() and place in seen:
        return seen[place]
    plain = _plain(tensor)
    if (_storage(plain),) in seen:
        plain = plain.clone()  # another view of the same storage, which safetensors refuses
    name = where.removeprefix(".")
    while name in tensors:
        name += "'"
    tensors[name] = plain
    seen[place] = seen[_storage(plain),] = name
    return name


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, with a storage of its own, as safetensors wants it."""
    plain = tensor.detach().cpu().contiguous()
    whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if whole else plain.clone()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    if "$dict" in value:
        return {key: _unpack(item, tensors) for key, item in value["$dict"]}
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _digest(structure: str, tensors: Mapping[str, Tensor]) -> str:
    result = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        result.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
