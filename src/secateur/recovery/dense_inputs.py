"""What layers see in the dense model, for recoveries that solve from it in one pass."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import Forward, run, take
from secateur.engine.calibration import checked
from secateur.engine.inputs import LayerInputs
from secateur.errors import DataError
from secateur.measure.calling import device_of, evaluating, to_device, unfused
from secateur.recovery.fed_less import fed_less
from secateur.recovery.moments import weight_rows


@dataclass(frozen=True)
class FedLess:
    """A layer that lost inputs.

    Attributes:
        rows: Which of the dense layer's outputs it still has.
        columns: Which of its inputs.
        weight: The dense weight as (outputs, inputs, positions).
        seen: Statistics of the dense layer's inputs, by name.
    """

    rows: Tensor
    columns: Tensor
    weight: Tensor
    seen: dict[str, Tensor]


def layers_fed_less(
    model: nn.Module,
    dense: nn.Module,
    plan: Any,
    needs: Collection[str],
    source: Iterable[Any],
    batches: int | None = None,
    forward: Forward | None = None,
    *,
    kernels: bool = False,
) -> tuple[dict[str, FedLess], dict[str, str]]:
    """The layers that lost inputs, with what they saw in the dense model.

    Args:
        model: The pruned model.
        dense: The dense one, with the same module names.
        plan: What was removed.
        needs: ``input_mean``, ``gram``.
        source: Batches.
        batches: How many of them; None for all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.
        kernels: Whether kernels of several positions can be used.

    Returns:
        Layer -> what is known of it; and layers that are left alone, with the reason.

    Raises:
        DataError: The model does not run on a batch, or an input is not finite.
    """
    places, skipped = fed_less(model, dense, plan)
    weights = {
        n: (rows := weight_rows(dense.get_submodule(n)).detach()).reshape(*rows.shape[:2], -1)
        for n in places
    }
    if not kernels:
        for name in [n for n, w in weights.items() if w.shape[2] > 1]:
            del places[name]
            skipped[name] = "a kernel of several positions: use least-squares"
    seen = dense_inputs(dense, places, needs, source, batches, forward)
    skipped |= dict.fromkeys(places.keys() - seen.keys(), "its forward is never called")
    found = {n: FedLess(*places[n], weights[n], seen[n]) for n in places if n in seen}
    return found, skipped


def dense_inputs(
    dense: nn.Module,
    layers: Collection[str],
    needs: Collection[str],
    source: Iterable[Any],
    batches: int | None = None,
    forward: Forward | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Means over tokens of the inputs of some layers.

    Args:
        dense: The dense model.
        layers: Names of its layers.
        needs: ``input_mean``, ``gram``.
        source: Batches.
        batches: How many of them; None for all.
        forward: ``(model, batch) -> output`` for batches that are neither tuples nor dicts.

    Returns:
        Layer -> statistics by name, on the layer's device; a layer that is never called is missing.

    Raises:
        DataError: The model does not run on a batch, or an input is not finite.
    """
    seen = LayerInputs(dense, needs, only=layers)
    with evaluating(dense), unfused(), seen, torch.no_grad():
        for batch in checked(dense, take(source, batches)) if layers else ():
            run(dense, to_device(batch, device_of(dense)), forward)
    found = {name.removesuffix(".weight") if "." in name else "": values
             for name, values in seen.result().items()}  # fmt: skip
    for name, values in found.items():
        if not all(bool(torch.isfinite(v).all()) for v in values.values()):
            raise DataError(
                f"the input of {name or 'the layer'} is not finite on these batches: look for NaN "
                "in the data"
            )
    return found
