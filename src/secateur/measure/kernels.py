"""From how many zeros on torch's sparse kernel is quicker than its dense one, on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.measure.calling import call, evaluating
from secateur.measure.latency import time_interleaved

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_MOST_WEIGHTS = 2**22
_MOST_PRODUCTS = 2**28  # of one call: tenths of a second on one slow core


@dataclass(frozen=True)
class SparseKernels:
    """A layer's product, dense and with its weight in CSR, timed in turn at several sparsities.

    Attributes:
        layer: Qualified name of the linear layer that has the most zeros.
        zeros: Fraction of its weight that is zero.
        rows, columns: Of the weight that was timed; large ones are timed in part.
        tokens: Rows of input that were timed; at most as many as the layer sees.
        dense_ms: Median of the dense product.
        sparsities, csr_ms: Fractions of zeros at random places, and the median at each.
        break_even: The lowest of these fractions from which on CSR is quicker; None: never.
    """

    layer: str
    zeros: float
    rows: int
    columns: int
    tokens: int
    dense_ms: float
    sparsities: tuple[float, ...]
    csr_ms: tuple[float, ...]
    break_even: float | None

    def __str__(self) -> str:
        times = ", ".join(
            f"{s:.0%} {ms:.3g}" for s, ms in zip(self.sparsities, self.csr_ms, strict=True)
        )
        when = (
            f"quicker than dense from {self.break_even:.0%} zeros on"
            if self.break_even is not None
            else f"slower than dense up to {self.sparsities[-1]:.0%} zeros"
        )
        return (
            f"{when} ({self.layer}, {self.rows} x {self.columns}, {self.tokens} rows of input: "
            f"dense {self.dense_ms:.3g} ms; {times})"
        )


def sparse_kernels(
    model: nn.Module, example_inputs: Any, *, repeats: int = 10, warmup: int = 2
) -> SparseKernels | None:
    """Time the layer that has the most zeros, at several sparsities.

    Args:
        model: With linear layers; torch has no sparse kernels for convolutions on a CPU.
        example_inputs: They say how many rows of input the layer sees.
        repeats: Rounds that are timed.
        warmup: Rounds before.

    Returns:
        None where no linear layer has a zero.

    Example:
        >>> layer = nn.Linear(8, 8)
        >>> with torch.no_grad(): _ = layer.weight[:6].zero_()
        >>> sparse_kernels(layer, torch.randn(4, 8), repeats=2).tokens
        4
    """
    zeros = {
        n: int((m.weight == 0).sum())
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.weight.layout == torch.strided
    }
    name = max(zeros, key=lambda n: zeros[n], default="")
    if not zeros or not zeros[name]:
        return None
    layer = model.get_submodule(name)
    weight: Any = layer.weight
    tokens = _tokens(model, layer, example_inputs)
    rows = max(min(len(weight), _MOST_WEIGHTS // weight.shape[1]), 1)
    part = weight.detach()[:rows]
    tokens = max(min(tokens, _MOST_PRODUCTS // part.numel()), 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, part.shape[1], generator=generator).to(part)
    dense, *csr = time_interleaved(
        [
            lambda: F.linear(x, part),
            *(lambda w=w: w @ x.T for w in _thinned(part, SPARSITIES, generator)),
        ],
        repeats=repeats,
        warmup=warmup,
        device=part.device,
    )
    dense_ms, csr_ms = 1e3 * median(dense), tuple(1e3 * median(s) for s in csr)
    return SparseKernels(
        layer=name or type(model).__name__,
        zeros=zeros[name] / weight.numel(),
        rows=rows,
        columns=part.shape[1],
        tokens=tokens,
        dense_ms=dense_ms,
        sparsities=SPARSITIES,
        csr_ms=csr_ms,
        break_even=break_even(SPARSITIES, csr_ms, dense_ms),
    )


def break_even(sparsities: Sequence[float], sparse: Sequence[float], dense: float) -> float | None:
    """The lowest sparsity from which on the sparse times are below the dense one.

    Example:
        >>> break_even((0.5, 0.9, 0.99), (3.0, 0.8, 0.2), 1.0)
        0.9
        >>> break_even((0.5, 0.9), (0.9, 1.2), 1.0)
    """
    found = None
    for sparsity, time in sorted(zip(sparsities, sparse, strict=True), reverse=True):
        if time >= dense:
            break
        found = sparsity
    return found


def _thinned(
    weight: Tensor, sparsities: Sequence[float], generator: torch.Generator
) -> list[Tensor]:
    order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support.*")
        for sparsity in sparsities:
            values = torch.ones_like(weight).flatten()
            values[order[: round(sparsity * weight.numel())]] = 0
            found.append(values.view_as(weight).to_sparse_csr())
    return found


def _tokens(model: nn.Module, layer: nn.Module, example_inputs: Any) -> int:
    seen: list[int] = []

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim():
            seen.append(args[0].numel() // max(args[0].shape[-1], 1))

    hook = layer.register_forward_pre_hook(see)
    try:
        with evaluating(model):
            call(model, example_inputs)
    finally:
        hook.remove()
    return max(seen, default=1)
