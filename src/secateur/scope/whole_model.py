"""Global: the weights of all layers compete with each other, however large their layers are."""

from collections.abc import Sequence

from secateur.scope.amounts import Weighed, amounts, shares_of_lowest


@amounts("global")
def whole_model(layers: Sequence[Weighed], amount: float) -> dict[str, float]:
    r"""The share of each layer among the ``round(amount n)`` smallest $|W_{ij}|$ of the model.

    With the method ``magnitude`` this is global magnitude pruning; another method removes as much
    of each layer, but others of its weights.

    Args:
        layers: Dense.
        amount: Fraction that goes in all; of equal weights those of earlier layers go first.

    Example:
        >>> small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
        >>> whole_model([Weighed("a", "0", small), Weighed("b", "1", large)], 0.5)
        {'a': 1.0, 'b': 0.0}

    Paper:
        arXiv:1506.02626
    """
    return shares_of_lowest(layers, lambda layer: layer.weight.detach().abs(), amount)
