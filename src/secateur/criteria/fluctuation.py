"""Fluctuation: what the next layer would lose if an input stayed at its mean (FLAP)."""

from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats


@criterion(level="input", needs={"input_variance"}, paper="arXiv:2312.11983")
def fluctuation(weight: Tensor, stats: Stats, *, standardize: bool = True) -> Tensor:
    r"""Score $S_j = \mathrm{Var}(X_j) \lVert W_{:,j} \rVert_2^2$, standardised over the layer.

    That is the mean squared error of the layer's output when input $j$ is replaced by its mean,
    as the recovery ``bias`` does. The authors' code squares the scores of attention once more;
    here all layers are treated alike.

    Args:
        weight: ``(outputs, inputs)`` of a layer that takes the units in.
        stats: ``input_variance`` of shape ``(inputs,)``.
        standardize: Subtract the mean over the layer's inputs and divide by their deviation, so
            that layers can be compared.

    Returns:
        Scores of shape ``(inputs,)``, float32.

    Example:
        >>> stats = Stats(input_variance=torch.tensor([2.0, 1.0]))
        >>> fluctuation(torch.tensor([[3.0, 1.0], [1.0, 0.0]]), stats, standardize=False)
        tensor([20.,  1.])
    """
    scores = stats.input_variance * weight.float().square().sum(0)
    if standardize:
        scores = (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-12)
    return scores
