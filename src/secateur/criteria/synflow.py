"""SynFlow: how much of the flow through the absolute weights passes a connection; no data."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from secateur.criteria.registry import criterion
from secateur.engine.batches import inputs_of, logits_of, take
from secateur.engine.gradients import twice_differentiable
from secateur.engine.order import epoch_batches, generators_kept
from secateur.errors import DataError
from secateur.measure.calling import as_call, describe, device_of, evaluating, to_device, words


@criterion(level="model", paper="arXiv:2006.05467")
def synflow(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    *,
    data: Iterable[Any] | None,
    loss: Any = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""Score $S_i = \frac{1}{R} \frac{\partial R}{\partial |\theta_i|} |\theta_i|$.

    $R$ is the sum of the outputs for an input of ones when every parameter and buffer has its
    absolute value, and biases and running means are zero, in evaluation mode and float64. So the
    scores of each layer that all of the flow passes add up to 1, and the last weight of such a
    layer has the highest. Dividing by $R$ changes no ranking and keeps them within float32. Inputs
    that are no floating numbers (tokens, edges) stay as they are.

    Args:
        model: Any; it is not changed.
        parameters: What is scored, by name.
        data: Its first batch says the shape of the inputs; no value of it is read but integers.
        loss: Not used.
        generator: Not used.

    Returns:
        Scores by name, of the parameters' shapes, float64, higher = keep.

    Raises:
        DataError: There are no data, the model cannot run in float64, or no output depends on the
            scale of its weights (as behind a softmax).

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([[1.0, -3.0]]))
        >>> synflow(net, dict(net.named_parameters()), data=[torch.zeros(1, 2)])["weight"]
        tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """
    if data is None:
        raise DataError("synflow needs the shape of the inputs: give data= or example_inputs=")
    with generators_kept(data):
        batch = to_device(next(take(epoch_batches(data, 0, 0), 1)), device_of(model))
    args, kwargs = as_call(tree_map(_ones, inputs_of(batch)))
    absolute = {
        n: _absolute(n, t, n in parameters) if t.is_floating_point() else t
        for n, t in chain(model.named_parameters(), model.named_buffers())
    }
    for name in parameters:
        absolute[name].requires_grad_(True)
    leaves = [absolute[n] for n in parameters]
    with evaluating(model), twice_differentiable(), torch.enable_grad():
        try:
            output = functional_call(model, absolute, args, kwargs)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
            raise DataError(
                f"{type(model).__name__} could not be run in float64 on ones shaped like "
                f"{describe(batch)}: {words(error)}. Let its forward make tensors of its inputs' "
                "dtype, or use criterion='saliency'"
            ) from error
        flow = logits_of(output).sum()
        gradients = torch.autograd.grad(flow, leaves, allow_unused=True)
    found = {
        n: torch.zeros_like(w) if g is None else (g * w / flow).detach()
        for n, w, g in zip(parameters, leaves, gradients, strict=True)
    }
    if not all(bool(s.isfinite().all()) for s in found.values()):
        raise DataError(
            f"the flow through {type(model).__name__} is {flow.item()} and cannot be shared out: "
            "its weights are too large, too small or all zero; scale them"
        )
    if not any(bool((s.abs() > 1e-9).any()) for s in found.values()):
        raise DataError(
            f"the outputs of {type(model).__name__} do not depend on the size of its weights: "
            "leave a softmax at its end to the loss"
        )
    return {n: s.abs() for n, s in found.items()}


def _absolute(name: str, tensor: Tensor, scored: bool) -> Tensor:
    """The absolute values; zero for what is added, whose flow no weight before it would carry."""
    values = tensor.detach().double().abs()
    own = name.rpartition(".")[2]
    added = own == "running_mean" or "bias" in own.split("_")
    return torch.zeros_like(values) if added and not scored else values


def _ones(value: Any) -> Any:
    """Ones in place of floating numbers."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.ones_like(value, dtype=torch.float64)
    return value
