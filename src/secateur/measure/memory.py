"""Memory: what the parameters take, the peak of a forward, and the size of the file on disk."""

import json
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.measure.calling import call, device_of, evaluating, to_device, unfused

# safetensors' names; their order is that of the data in the file (widest first).
_DTYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.complex64: "C64", torch.float64: "F64",
    torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class PeakMemory:
    """Bytes that a forward needs beside weights and inputs.

    ``peak`` is the most that was alive at once, ``allocated`` the sum of everything that was made,
    and ``method`` says how it was found.
    """

    peak: int
    allocated: int
    method: str


class _LiveBytes(TorchDispatchMode):
    """Follow every storage that an operator makes until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.allocated = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):  # what an operator is given existed before
            if isinstance(tensor, Tensor):
                self._follow(tensor, made_here=False)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor, made_here=True)
        self.peak = max(self.peak, self.live)
        return out

    def _follow(self, tensor: Tensor, made_here: bool) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes() if made_here else 0
        self.known.add(key)
        self.live += size
        self.allocated += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_memory(model: nn.Module, example_inputs: Any) -> PeakMemory:
    """Peak memory of one forward in evaluation mode, without gradients.

    On CUDA it is the allocator's own peak. Elsewhere (CPU, meta) the storages that operators make
    are followed from birth to release; scratch space inside a kernel is not seen.

    Raises:
        DataError: the model cannot be run on these inputs.

    Example:
        >>> peak_memory(nn.Linear(10, 5), torch.zeros(1, 10)).peak
        20
    """
    device = device_of(model)
    if device.type == "meta":
        example_inputs = to_device(example_inputs, device)
    with evaluating(model), unfused(), _LiveBytes() as bytes_:
        call(model, example_inputs)
    if device.type != "cuda":
        return PeakMemory(bytes_.peak, bytes_.allocated, "live tensors, kernels' scratch excluded")
    with evaluating(model):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(model, example_inputs)
        peak = torch.cuda.max_memory_allocated(device) - before
    return PeakMemory(peak, bytes_.allocated, "CUDA allocator")


def file_bytes(model: nn.Module) -> int:
    """Size in bytes of the model's safetensors file, header included, without writing it.

    Parameters and persistent buffers; what is shared counts once, as
    ``safetensors.torch.save_model`` writes it. Works on the meta device.

    Example:
        >>> file_bytes(nn.Linear(200, 100)) - 4 * (200 * 100 + 100)
        144
    """
    kept: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not isinstance(tensor, Tensor):
            continue
        key = _identity(tensor)
        if key in first and tensor.numel():
            metadata[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor
    rank = {dtype: index for index, dtype in enumerate(_DTYPES)}
    order = sorted(
        kept, key=lambda n: (-kept[n].element_size(), rank.get(kept[n].dtype, len(rank)), n)
    )
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in order:
        tensor = kept[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES.get(tensor.dtype, str(tensor.dtype)),
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset  # length field, header padded to 8 bytes, data


def _identity(tensor: Tensor) -> Any:
    if tensor.device.type == "meta":
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
