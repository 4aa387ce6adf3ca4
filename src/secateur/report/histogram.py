"""The weight distribution of a model, as the record holds it."""

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.report.record import Histogram


def histogram(model: nn.Module, *, bins: int = 121, like: Histogram | None = None) -> Histogram:
    """Count the weights of ``model`` (floating parameters of two or more dimensions).

    Without ``like`` the edges are ``bins`` equal steps over $[-m, m]$ with $m = \\max |w|$; with it
    they are the other histogram's, so that the two can be drawn over each other, and weights
    outside are counted in the outermost bins. Exact zeros, which pruning leaves, are counted apart.

    Raises:
        DataError: a weight is NaN or infinite, or there is no weight at all.

    Example:
        >>> from torch import nn
        >>> dense = histogram(nn.Linear(8, 8), bins=11)
        >>> sum(dense.counts) + dense.zeros
        64
    """
    weights = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and parameter.is_floating_point() and parameter.numel()
    }
    if not weights:
        raise DataError("the model has no weights (floating parameters of two or more dimensions).")
    largest = max(_largest(name, weight) for name, weight in weights.items())
    if like is None:
        reach = largest or 1.0  # a model of zeros still needs edges that increase
        edges = torch.linspace(-reach, reach, bins + 1, dtype=torch.float64)
    else:
        edges = torch.tensor(like.edges, dtype=torch.float64)
    counts = torch.zeros(len(edges) - 1, dtype=torch.int64)
    zeros = 0
    # in pieces: an embedding of an LLM in float64 would need gigabytes; in float64 on the CPU
    # because torch.histogram is not on every device and edges rounded to bf16 would move
    for piece in (piece for w in weights.values() for piece in w.flatten().split(1 << 22)):
        nonzero = piece[piece != 0].double().cpu()
        zeros += piece.numel() - nonzero.numel()
        places = torch.bucketize(nonzero, edges, right=True) - 1
        counts += torch.bincount(places.clamp(0, len(counts) - 1), minlength=len(counts))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), zeros)


def _largest(name: str, weight: Tensor) -> float:
    low, high = weight.aminmax()
    largest = max(-float(low), float(high))
    if not torch.isfinite(torch.tensor(largest)) or low != low:
        raise DataError(f"`{name}` holds NaN or infinite weights; nothing can be drawn from it.")
    return largest
