"""DepGraph's sparse learning: push whole coupled groups towards zero before they are removed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.engine.seams import Moment, Penalty
from secateur.errors import ConfigError
from secateur.granularity.sums import unit_sum
from secateur.granularity.units import is_bias
from secateur.graph import Graph, UnitClass


@dataclass
class GroupSparsity(Penalty):
    r"""Weighted shrinkage of every unit over all tensors that it is coupled through.

    With $I_k = \sum_{w \in k} w^2$ over all members of unit k,

    $$R = \frac{1}{2}\sum_k \gamma_k I_k, \qquad
      \gamma_k = 2^{\alpha (I_{max} - I_k) / (I_{max} - I_{min})}$$

    so the least important unit of a class is pushed $2^\alpha$ times as hard as the most important.
    The gradient $\lambda \gamma_k w$ treats $\gamma$ as a constant. Units that are all alike get
    $\gamma = 1$. With ``growth`` the strength is a state of each unit instead, which grows by
    ``growth`` $(I_{max} - I_k)/(I_{max} - I_{min})$ every ``every`` steps (growing regularisation).

    Args:
        graph: Which units there are.
        strength: $\lambda$.
        alpha: Spread of the weights $\gamma$.
        variant: ``l2`` as in the authors' code; ``lasso`` divides each unit's gradient by its norm.
        growth: Growing regularisation's increment; 0 leaves it off.
        every: Steps between two increments.

    Example:
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> penalty = GroupSparsity(trace(net, torch.randn(2, 4)))
        >>> sorted(penalty.weights(dict(net.named_parameters())))
        ['0']

    Paper:
        arXiv:2301.12900 (DepGraph); growing regularisation: arXiv:2012.09243.
    """

    graph: Graph
    strength: float = 1e-4
    alpha: float = 4.0
    variant: str = "l2"
    growth: float = 0.0
    every: int = 100
    _grown: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.variant not in ("l2", "lasso"):
            raise ConfigError(f"variant must be 'l2' or 'lasso', not {self.variant!r}")
        if not (self.strength >= 0 and self.growth >= 0 and self.every >= 1):
            raise ConfigError("strength and growth must not be negative, every at least 1")

    def importances(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Sum of squares of every unit over all its coupled weights; class name -> (size,)."""
        squares = {n: p.detach().abs().float().square() for n, p in parameters.items()}
        return {
            c.name: sum(
                (
                    unit_sum(_along(squares[m.tensor], m.axis), m.unit, c.size)
                    for m in _members(c, parameters)
                ),
                torch.zeros(c.size, device=next(iter(squares.values())).device),
            )
            for c in self.graph.free.values()
            if _members(c, parameters)
        }

    def weights(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """How hard every unit is pushed, strength included; class name -> (size,)."""
        result = {}
        for name, importance in self.importances(parameters).items():
            lack = _lack(importance)
            if self.growth:
                result[name] = self._grown.setdefault(
                    name, torch.full_like(importance, self.strength)
                ).to(importance.device)
            else:
                result[name] = self.strength * 2 ** (self.alpha * lack)
            if self.variant == "lasso":
                result[name] = result[name] / importance.sqrt().clamp_min(1e-12)
        return result

    def gradients(self, moment: Moment) -> None:
        """Add each unit's push to the gradients of all its weights."""
        parameters = moment.parameters
        self._grown = {
            n[6:]: t for n, t in moment.state.items() if n.startswith("grown.")
        } or self._grown
        pushes = self.weights(parameters)
        with torch.no_grad():
            for c in self.graph.free.values():
                for m in _members(c, parameters):
                    p = parameters[m.tensor]
                    if p.grad is None:
                        continue
                    inside = (m.unit >= 0).to(p.device)
                    push = pushes[c.name][m.unit.clamp_min(0).to(p.device)] * inside
                    shape = [1] * p.dim()
                    shape[m.axis] = -1
                    p.grad.add_((push.view(shape) * p.detach()).to(p.grad.dtype))
        if self.growth and (moment.step + 1) % self.every == 0:
            for name, importance in self.importances(parameters).items():
                self._grown[name] = self._grown[name] + self.growth * _lack(importance)
        moment.state.update({f"grown.{n}": t for n, t in self._grown.items()})


def _members(c: UnitClass, parameters: dict[str, nn.Parameter]) -> list:
    return [
        m
        for m in c.members
        if m.tensor in parameters and not is_bias(m.tensor, tuple(parameters[m.tensor].shape))
    ]


def _along(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor


def _lack(importance: Tensor) -> Tensor:
    """(I_max - I) / (I_max - I_min): 0 for the most important unit, 1 for the least."""
    spread = importance.max() - importance.min()
    return (importance.max() - importance) / spread if spread > 0 else torch.zeros_like(importance)
