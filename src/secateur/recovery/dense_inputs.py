"""What layers see in the dense model, for recoveries that solve from it in one pass."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import Forward, run, take
from secateur.engine.inputs import LayerInputs
from secateur.errors import DataError
from secateur.measure.calling import device_of, evaluating, to_device, unfused


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
        for batch in take(source, batches) if layers else ():
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
