"""The Hessian's diagonal, exact in the mean or by the empirical Fisher."""

from torch import Tensor

from secateur.engine.statistics import Stats
from secateur.errors import ConfigError

_STATISTIC = {"hutchinson": "hessian", "fisher": "sample_grad_sq"}


def curvature_needs(hessian: str = "hutchinson") -> set[str]:
    """The statistic that an option ``hessian=`` asks for."""
    if hessian not in _STATISTIC:
        raise ConfigError(f"hessian={hessian!r} must be one of {', '.join(_STATISTIC)}")
    return {_STATISTIC[hessian]}


def curvature(stats: Stats, hessian: str) -> Tensor:
    """The diagonal, of the parameter's shape."""
    (name,) = curvature_needs(hessian)
    return getattr(stats, name)
