"""The exported form of a model, for forwards that cannot be made to say a new size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import TraceError
from secateur.graph.forward import call_arguments, evaluating


def exported(model: nn.Module, example_inputs: Any) -> nn.Module:
    """The model as a flat graph of operators, with the same parameter names and a free batch size.

    Where a plan notes that a forward cannot say the new size, prune this instead: it has no Python
    of its own, so every size in it can be put right. It runs in eval mode only.

    Args:
        model: Any module that ``torch.export`` takes.
        example_inputs: As ``trace`` takes them, with a batch of at least two.

    Returns:
        A module to trace, plan, prune, save and load like any other.

    Raises:
        TraceError: ``torch.export`` does not take the model.

    Example:
        >>> net = exported(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4))
        >>> sorted(n for n, _ in net.named_parameters())[0]
        '0.bias'
    """
    args, kwargs = call_arguments(example_inputs)
    free = torch.export.Dim.AUTO

    def batch(value: Any) -> Any:
        shaped = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] > 1
        return {0: free} if shaped else None

    shapes: Any = (
        tuple(batch(a) for a in args) if not kwargs else {k: batch(v) for k, v in kwargs.items()}
    )
    with evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise TraceError(
                f"torch.export does not take this {type(model).__name__}: "
                f"{type(error).__name__}: {first}"
            ) from error
    return program.module()
