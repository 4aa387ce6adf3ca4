"""Batch-norm gamma and beta: what a channel still gives after its normalisation and ReLU."""

from math import pi, sqrt

import torch
from torch import Tensor

from secateur.criteria.registry import criterion
from secateur.engine.statistics import Stats
from secateur.errors import ConfigError


@criterion(
    level="norm",
    paper="Zhao et al., Variational convolutional neural network pruning, CVPR 2019",
    reduction="mean",
)
def bn_gamma_beta(scale: Tensor, stats: Stats, *, form: str = "relu") -> Tensor:
    r"""Score the output of $y = \gamma \hat x + \beta$ with $\hat x \sim N(0, 1)$.

    - ``relu``: $E[\max(y, 0)] = |\gamma|\, \varphi(\beta / |\gamma|) + \beta\, \Phi(\beta /
      |\gamma|)$;
    - ``sum``: $|\gamma| + |\beta|$.

    Args:
        scale: $\gamma$ of a batch norm, shape ``(channels,)``.
        stats: ``shift`` is $\beta$, of the same shape.
        form: ``relu`` or ``sum``.

    Returns:
        Scores of shape ``(channels,)``, float32.

    Raises:
        ConfigError: Another form.

    Example:
        >>> bn_gamma_beta(torch.tensor([1.0]), Stats(shift=torch.tensor([0.0])))
        tensor([0.3989])
    """
    gamma, beta = scale.float().abs(), stats.shift.float()
    if form == "sum":
        return gamma + beta.abs()
    if form != "relu":
        raise ConfigError(f"criterion bn_gamma_beta: form={form!r} must be 'relu' or 'sum'")
    ratio = beta / gamma.clamp(min=1e-12)
    density = torch.exp(-ratio.square() / 2) / sqrt(2 * pi)
    return gamma * density + beta * torch.special.ndtr(ratio)
