"""Fisher: the weights of all layers compete by what the loss would feel of each."""

from collections.abc import Sequence

from torch import Tensor

from secateur.errors import ConfigError, DataError
from secateur.scope.amounts import Weighed, amounts, shares_of_lowest


@amounts("fisher", inputs=True, gradients=True)
def fisher(layers: Sequence[Weighed], amount: float, *, spread: float = 0.15) -> dict[str, float]:
    r"""The share of each layer among the weights of the model with the lowest
    $|W_{ij}| \sqrt{E[x_j^2] E[g_i^2]}$, between ``amount - spread`` and ``amount + spread``.

    Its square is the increase of the loss to second order, if the Fisher matrix of each layer is
    taken as the product of the diagonals of E[x x'] and E[g g'], where g is the gradient of the
    loss with respect to the layer's output. That holds for small changes, and each layer's alone;
    the bounds are for what it does not see, that errors of one layer meet those of others.

    Args:
        layers: Dense, with norms of inputs and gradients of outputs.
        amount: Fraction that goes in all.
        spread: How far a layer's share may be from it. Of 1 and more there are no bounds.

    Raises:
        ConfigError: The spread is negative.
        DataError: Norms or gradients are not known.

    Example:
        >>> one, two = (Weighed(n, n, torch.ones(1, 2), torch.ones(2), torch.tensor([g]))
        ...             for n, g in (("a", 1.0), ("b", 3.0)))
        >>> fisher([one, two], 0.5, spread=1)
        {'a': 1.0, 'b': 0.0}

    Paper:
        The factored Fisher matrix is that of K-FAC, arXiv:1503.05671.
    """
    if not spread >= 0:
        raise ConfigError(f"scope fisher: spread must be 0 or more, not {spread}")
    least, most = max(amount - spread, 0.0), min(amount + spread, 1.0)
    bounds = {layer.name: _between(_score(layer), least, most) for layer in layers}

    def bounded(layer: Weighed) -> Tensor:
        scores, (first, last) = _score(layer), bounds[layer.name]
        return scores.masked_fill(scores < first, 0.0).masked_fill(scores > last, float("inf"))

    return shares_of_lowest(layers, bounded, amount)


def _between(scores: Tensor, least: float, most: float) -> tuple[float, float]:
    """Below the first of these goes what must, above the second stays what must."""
    flat = scores.flatten()
    places = round(least * flat.numel()) + 1, round(most * flat.numel())
    first, last = (
        float(flat.kthvalue(place).values) if 1 <= place <= flat.numel() else edge
        for place, edge in zip(places, (float("inf"), -1.0), strict=True)
    )
    return first, last


def _score(layer: Weighed) -> Tensor:
    if layer.input_norm is None or layer.output_gradient is None:
        raise DataError(
            f"scope fisher needs the gradient of the loss behind {layer.name}: give calibration "
            "data, and ignore= what is no linear layer"
        )
    size = layer.weight.detach().abs().float()
    return size * layer.input_norm.float() * layer.output_gradient.float()[:, None]
