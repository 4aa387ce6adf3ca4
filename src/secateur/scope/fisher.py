"""Fisher: the weights of all layers compete by what the loss would feel of each."""

from collections.abc import Sequence

from torch import Tensor

from secateur.errors import DataError
from secateur.scope.amounts import Weighed, amounts, shares_of_lowest


@amounts("fisher", inputs=True, gradients=True)
def fisher(layers: Sequence[Weighed], amount: float) -> dict[str, float]:
    r"""The share of each layer among the weights of the model with the lowest
    $|W_{ij}| \sqrt{E[x_j^2] E[g_i^2]}$.

    Its square is the increase of the loss to second order, if the Fisher matrix of each layer is
    taken as the product of the diagonals of E[x x'] and E[g g'], where g is the gradient of the
    loss with respect to the layer's output.

    Args:
        layers: Dense, with norms of inputs and gradients of outputs.
        amount: Fraction that goes in all.

    Raises:
        DataError: Norms or gradients are not known.

    Example:
        >>> one, two = (Weighed(n, n, torch.ones(1, 2), torch.ones(2), torch.tensor([g]))
        ...             for n, g in (("a", 1.0), ("b", 3.0)))
        >>> fisher([one, two], 0.5)
        {'a': 1.0, 'b': 0.0}

    Paper:
        The factored Fisher matrix is that of K-FAC, arXiv:1503.05671.
    """
    return shares_of_lowest(layers, _score, amount)


def _score(layer: Weighed) -> Tensor:
    if layer.input_norm is None or layer.output_gradient is None:
        raise DataError(
            f"scope fisher needs the gradient of the loss behind {layer.name}: give calibration "
            "data, and ignore= what is no linear layer"
        )
    size = layer.weight.detach().abs().float()
    return size * layer.input_norm.float() * layer.output_gradient.float()[:, None]
