"""LASSO: which input channels the next layer's output can be put together from."""

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats
from secateur.errors import ConfigError, MissingExtraError


@criterion(level="input", needs={"contribution"}, paper="arXiv:1707.06168")
def lasso(weight: Tensor, stats: Stats, *, points: int = 200) -> Tensor:
    r"""Score: how early a channel enters along the path of growing $\beta$.

    $$\min_\beta \tfrac12 \lVert Y - \sum_c \beta_c Z_c \rVert^2 + \lambda \lVert \beta \rVert_1$$

    with $Z_c$ the contribution of channel c to the layer's output $Y = \sum_c Z_c$. The paper
    searches the $\lambda$ that leaves as many channels as are wanted; here $\lambda$ falls from the
    value that leaves none in ``points`` steps to a ten-thousandth of it, and a channel scores the
    number of steps at which it is used, so that one pass serves every amount. The weights are then
    refitted by the recovery ``least-squares``. Needs scikit-learn.

    Args:
        weight: Not used: it is in the contributions.
        stats: ``contribution`` of shape ``(inputs, inputs)``.
        points: Steps of $\lambda$.

    Returns:
        Scores of shape ``(inputs,)``, float32; of channels used equally long, the larger
        $|\beta_c|$ decides.

    Raises:
        ConfigError: Fewer than two points.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> stats = Stats(contribution=torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> scores = lasso(torch.ones(1, 2), stats)
        >>> bool(scores[0] > scores[1])
        True
    """
    if points < 2:
        raise ConfigError(f"criterion 'lasso': points={points}, give at least 2")
    try:
        from sklearn.linear_model import lasso_path
    except ImportError as error:
        raise MissingExtraError(
            "criterion 'lasso' needs scikit-learn: pip install 'secateur[search]'"
        ) from error
    gram = stats.contribution.double().cpu()
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()  # a design with the same products: X'X = gram
    design = root.T.numpy()
    if not gram.diagonal().max() > 0:
        return torch.zeros(len(gram), device=weight.device)
    aim = design.sum(1)
    largest = abs(design.T @ aim).max() / len(aim)
    falling = [largest * 1e-4 ** (k / (points - 1)) for k in range(points)]
    _, path, _ = lasso_path(design, aim, alphas=falling)
    coefficients = torch.from_numpy(path).abs()
    used = (coefficients > 0).sum(1)
    last = coefficients[:, -1]
    return (used + last / (1 + last.max())).float().to(weight.device)
