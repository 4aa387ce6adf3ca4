"""What each layer of a model is asked to lose, where an amount is divided among layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.engine.dense import dense_energies, dense_norms, matrices
from secateur.errors import ConfigError, DataError
from secateur.scope import amounts
from secateur.scope.amounts import Weighed

_SAMPLES = 4  # batches that gradients are taken of


@dataclass(frozen=True)
class Share:
    """What one layer loses.

    Attributes:
        amount: Fraction.
        rows: How much each output matters to the loss, where gradients say so.
    """

    amount: float
    rows: Tensor | None = None


def shares(
    model: nn.Module,
    scope: str | tuple[str, Mapping[str, Any]],
    amount: float | None,
    samples: Sequence[Any],
    ignored: Callable[[str], bool] = lambda _: False,
) -> dict[str, Share]:
    """The share of each layer by name; empty if all lose the same.

    Args:
        model: Dense; stays as it is.
        scope: A name of ``scope.amounts``, or (name, options).
        amount: Fraction that goes in all; None where a pattern or masks say what goes.
        samples: Calibration batches; none are needed by scopes of weights alone.
        ignored: Whether a parameter is left out.

    Raises:
        ConfigError: There is no such scope, or there is no amount to divide.
        DataError: The scope needs data, or a loss, that are not there.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[1].weight)
        >>> {name: share.amount for name, share in shares(net, "global", 0.5, []).items()}
        {'0.weight': 0.0, '1.weight': 1.0}
    """
    name, options = (scope, {}) if isinstance(scope, str) else scope
    divider = amounts.find(name)
    if name == "uniform":
        return {}
    if amount is None:
        raise ConfigError(f"scope={name!r} divides an amount, and there is none: leave one out")
    if divider.inputs and not samples:
        raise DataError(f"scope {name} needs calibration data: give data=")
    layers = _weighed(model, samples if divider.inputs else [], ignored, divider.gradients)
    if not layers:
        raise DataError(f'scope {name} found no layer that it can weigh: choose scope="uniform"')
    divided = amounts.divide(name, layers, amount, options)
    return {layer.name: Share(divided[layer.name], layer.output_gradient) for layer in layers}


def _weighed(
    model: nn.Module, samples: Sequence[Any], ignored: Callable[[str], bool], gradients: bool
) -> list[Weighed]:
    """The layers that will be pruned, with what they meet where there are samples."""
    if not samples:
        return [Weighed(x.name, block, matrix) for x, block, matrix in matrices(model, ignored)]
    if gradients:  # a few samples say which outputs matter
        try:
            energies = dense_energies(model, samples[:_SAMPLES], ignored)
        except DataError as error:
            raise DataError(f'{error} Or give scope="uniform", which needs no loss.') from error
        return [
            Weighed(
                e.layer.name, e.block, e.layer.of(model.get_parameter(e.layer.parameter)),
                e.inputs.sqrt(), e.gradients.sqrt(),
            )
            for e in energies
        ]  # fmt: skip
    return [
        Weighed(layer.name, block, layer.of(model.get_parameter(layer.parameter)), norm)
        for layer, block, norm in dense_norms(model, samples, ignored)
    ]
