"""``measure``: everything a model costs, as one value, alone or against the dense model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateur.errors import ConfigError, DataError
from secateur.measure import latency as clock
from secateur.measure.calling import call, device_of, evaluating, to_device
from secateur.measure.energy import Energy, energy
from secateur.measure.kernels import SparseKernels, sparse_kernels
from secateur.measure.latency import Latency, Speedup
from secateur.measure.macs import macs
from secateur.measure.memory import PeakMemory, file_bytes, peak_memory
from secateur.measure.storage import total

_MANY_ZEROS = 0.01


@dataclass(frozen=True)
class Measurement:
    """What one model costs for one set of example inputs.

    ``zeros`` is the fraction of exact zeros among all parameters (``None`` on the meta device);
    ``latency`` is ``None`` where nothing could be or was to be timed; ``note`` says what a reader
    must know. Where there are zeros, ``storage`` has the words of 32 bits of each sparse format,
    and ``csr`` the times of torch's sparse kernel beside the dense one.
    """

    parameters: int
    parameter_bytes: int
    buffer_bytes: int
    zeros: float | None
    macs: int
    macs_by_module: dict[str, int]
    latency: Latency | None
    memory: PeakMemory
    file_bytes: int
    energy: Energy
    device: str
    dtype: str
    note: str = ""
    against: "Comparison | None" = None
    storage: Mapping[str, int] | None = None
    csr: SparseKernels | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, dicts and ``None``: ready for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        time, gain = self.latency, self.against
        lines = [f"parameters   {self.parameters:,}", f"MACs         {self.macs:,}"]
        if time:
            spread = f"p10 {time.p10_ms:.3f}, p90 {time.p90_ms:.3f}"
            lines.append(
                f"latency      {time.median_ms:.3f} ms ({spread}; {time.repeats} runs, "
                f"threads: {time.threads}, {time.device})"
            )
        lines += [
            f"peak memory  {self.memory.peak / 2**20:.2f} MiB ({self.memory.method})",
            f"file         {self.file_bytes / 2**20:.2f} MiB",
            f"energy       {self.energy.millijoules:.4g} mJ (a model, not a measurement)",
        ]
        if self.storage:
            sizes = ", ".join(f"{name} {count:,}" for name, count in self.storage.items())
            lines.append(f"stored as    {sizes} (words of 32 bits)")
        if self.csr:
            lines.append(f"CSR kernel   {self.csr}")
        if gain:
            ratios = {"parameters": gain.parameters, "MACs": gain.macs, "file": gain.file_bytes}
            lines.append(
                "dense / this "
                + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items() if ratio)
            )
        if gain and gain.speedup:
            fast = gain.speedup
            spread = f"p10 {fast.p10:.2f}, p90 {fast.p90:.2f}"
            lines.append(f"speed-up     {fast.ratio:.2f}x ({spread}, interleaved)")
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])


@dataclass(frozen=True)
class Comparison:
    """The dense model's measurement and dense / this for each cost: 2.0 means half the cost.

    A ratio is ``None`` where this model's cost is zero; ``speedup`` is ``None`` where nothing was
    timed.
    """

    dense: Measurement
    parameters: float | None
    macs: float | None
    peak_memory: float | None
    file_bytes: float | None
    energy: float | None
    speedup: Speedup | None


def measure(
    model: nn.Module,
    example_inputs: Any,
    *,
    against: nn.Module | None = None,
    repeats: int = 20,
    warmup: int = 3,
    threads: int | None = None,
) -> Measurement:
    """Measure what a model costs; with ``against``, what it costs beside the dense model.

    Both models are timed in turn in one run (A B A B ...), so that other load on the machine meets
    them alike. Everything runs in evaluation mode without gradients; modes and hooks are as before
    afterwards. Energy is a model and says so.

    Args:
        model: any module; on the meta device everything but latency is given.
        example_inputs: a tensor, a tuple (positional) or a dict (keywords), on the model's device.
        against: the dense model, run on the same inputs.
        repeats: timed forwards of each model; 0 leaves latency out.
        warmup: forwards before those.
        threads: CPU threads while timing; ``None`` keeps torch's current number, which is stated.

    Raises:
        DataError: a model cannot be run on the inputs.
        ConfigError: no module, or ``repeats``, ``warmup`` or ``threads`` out of range.

    Example:
        >>> measure(nn.Linear(10, 5), torch.zeros(1, 10), repeats=0).macs
        50
    """
    for name, given in (("model", model), ("against", against)):
        if not isinstance(given, nn.Module) and (name == "model" or given is not None):
            raise ConfigError(f"{name}= is a {type(given).__name__}: give a torch.nn.Module")
    models = [model] if against is None else [model, against]
    results = [_untimed(each, example_inputs) for each in models]
    samples: list[list[float]] = []
    timed = repeats != 0 and all(device_of(each).type != "meta" for each in models)
    if timed:
        device = device_of(model)
        with clock.threads(threads), evaluating(*models):
            # dense first in each round
            calls = [lambda m=each: call(m, example_inputs) for each in reversed(models)]
            samples = clock.time_interleaved(calls, repeats=repeats, warmup=warmup, device=device)[
                ::-1
            ]
            results = [
                replace(result, latency=clock.summarize(seconds, warmup, device))
                for result, seconds in zip(results, samples, strict=True)
            ]
    if timed and results[0].storage is not None:
        with clock.threads(threads):
            csr = sparse_kernels(model, example_inputs)
        results[0] = replace(results[0], csr=csr, note=f"{results[0].note} {_said_of(csr)}")
    if against is None:
        return results[0]
    this, dense = results
    comparison = Comparison(
        dense=dense,
        parameters=_ratio(dense.parameters, this.parameters),
        macs=_ratio(dense.macs, this.macs),
        peak_memory=_ratio(dense.memory.peak, this.memory.peak),
        file_bytes=_ratio(dense.file_bytes, this.file_bytes),
        energy=_ratio(dense.energy.millijoules, this.energy.millijoules),
        speedup=clock.speedup(samples[1], samples[0]) if timed else None,
    )
    return replace(this, against=comparison)


def _untimed(model: nn.Module, example_inputs: Any) -> Measurement:
    parameters = list(model.parameters())
    buffers = list(model.buffers())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise DataError(
                f"{name} of {type(model).__name__} has no shape yet (a lazy module): "
                "run the model once on real inputs before measuring it."
            )
    device = device_of(model)
    if device.type == "meta":
        example_inputs = to_device(example_inputs, device)
    count = sum(p.numel() for p in parameters)
    weight_bytes = sum(_bytes(p) for p in parameters)
    buffer_bytes = sum(_bytes(b) for b in buffers)
    count_macs, by_module = macs(model, example_inputs)
    memory = peak_memory(model, example_inputs)
    dtype = parameters[0].dtype if parameters else torch.get_default_dtype()
    zeros = None
    if device.type != "meta":
        nonzero = sum(int(torch.count_nonzero(p)) for p in parameters)
        zeros = (count - nonzero) / count if count else 0.0
    notes = []
    storage = None
    if zeros is not None and zeros >= _MANY_ZEROS:
        notes.append(
            f"{zeros:.1%} of the parameters are zero; zeros alone bring no speed-up and no smaller "
            "file: dense kernels multiply them like any number. Remove whole units, or store them "
            "with secateur.measure.sparse_file.save_sparse."
        )
        storage = total(dict(model.named_parameters()))
    if device.type == "meta":
        notes.append("On the meta device nothing runs, so latency is not measured.")
    return Measurement(
        parameters=count,
        parameter_bytes=weight_bytes,
        buffer_bytes=buffer_bytes,
        zeros=zeros,
        macs=count_macs,
        macs_by_module=by_module,
        latency=None,
        memory=memory,
        file_bytes=file_bytes(model),
        energy=energy(count_macs, weight_bytes + buffer_bytes, memory.allocated, dtype=dtype),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        note=" ".join(notes),
        storage=storage,
    )


def _said_of(csr: SparseKernels | None) -> str:
    if csr is None:
        return "torch has no sparse kernel for the layers that hold these zeros."
    if csr.break_even is not None and csr.zeros >= csr.break_even:
        return (
            f"Here {csr.layer}, {csr.zeros:.1%} of which is zero, would be quicker with its weight "
            "in CSR."
        )
    return (
        f"Here {csr.layer}, {csr.zeros:.1%} of which is zero, would not be quicker with its weight "
        "in CSR either."
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _ratio(dense: float, this: float) -> float | None:
    return dense / this if this else None
