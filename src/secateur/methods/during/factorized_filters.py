"""Factorized convolutional filters: a scalar a filter, made binary by ADMM while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.seams import Auxiliaries, Gate, Moment, Tensors
from secateur.errors import ConfigError
from secateur.methods.registry import Method, method


def to_capped_box(v: Tensor, total: float) -> Tensor:
    r"""Nearest point of $\{0 \le z \le 1, \sum z = k\}$: $\mathrm{clip}(v + t, 0, 1)$ for one t.

    Example:
        >>> to_capped_box(torch.tensor([0.9, 0.5, 0.2]), 1.0)
        tensor([0.7000, 0.3000, 0.0000])
    """
    low, high = float(-v.max()), float(1 - v.min())
    for _ in range(40):
        middle = (low + high) / 2
        enough = float((v + middle).clamp(0, 1).sum()) >= total
        low, high = (low, middle) if enough else (middle, high)
    return (v + high).clamp(0, 1)


def to_sphere(v: Tensor) -> Tensor:
    r"""Nearest point of the sphere through all binary vectors, $\lVert z - 1/2 \rVert^2 = n/4$.

    Example:
        >>> to_sphere(torch.tensor([0.6, 0.5]))
        tensor([1.2071, 0.5000])
    """
    away = v - 0.5
    length = away.norm()
    if float(length) == 0:
        away, length = torch.ones_like(v), v.new_tensor(len(v) ** 0.5)
    return 0.5 + away * (len(v) ** 0.5 / 2 / length)


@dataclass(frozen=True)
class Binary(Gate):
    """Scalars v; copies z1 in the box and z2 on the sphere; multipliers y1 and y2."""

    lr: float | None = 0.1
    shared: bool = True
    mix: float = 0.99
    weak: float = 0.5
    strong: float = 5.0
    end: float = 0.6
    scheduled = True

    def auxiliaries(self, name: str, weight: Tensor, generator: torch.Generator) -> Tensors:
        return {"v": torch.ones_like(weight)}

    def factor(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        if moment.progress >= self.end:
            return mask.float()
        v = aux["v"]
        return v.detach() + (1 - self.mix) * (v - v.detach())

    def scores(self, weight: Tensor, aux: Tensors) -> Tensor:
        return aux["v"]

    def force(self, moment: Moment) -> float:
        r"""$\rho$, growing exponentially."""
        return self.weak * (self.strong / self.weak) ** min(moment.progress / self.end, 1.0)

    def copies(self, space: str, v: Tensor, moment: Moment) -> list[Tensor]:
        """z1, z2, y1 and y2, at first all of v and zero."""
        first = {"z1": v.detach(), "z2": v.detach()}
        return [
            moment.state.get(f"{key}.{space}", first.get(key, torch.zeros_like(v.detach())))
            for key in ("z1", "z2", "y1", "y2")
        ]

    def loss(self, aux: Auxiliaries, moment: Moment) -> Tensor | None:
        if moment.progress >= self.end:
            return None
        rho, terms = self.force(moment), []
        for space, a in aux.items():
            v = a["v"]
            z1, z2, y1, y2 = self.copies(space, v, moment)
            apart = (v - z1).square().sum() + (v - z2).square().sum()
            terms.append((y1 + y2) @ v + rho / 2 * apart)
        return self.mix * torch.stack(terms).sum()

    def updated(self, aux: Auxiliaries, moment: Moment) -> None:
        if moment.progress >= self.end:
            return
        rho = self.force(moment)
        for space, a in aux.items():
            v = a["v"]
            _, _, y1, y2 = self.copies(space, v, moment)
            total = max(round(len(v) * (1 - moment.target)), 1)
            z1 = to_capped_box(v + y1 / rho, total)
            z2 = to_sphere(v + y2 / rho)
            moment.state[f"z1.{space}"], moment.state[f"z2.{space}"] = z1, z2
            moment.state[f"y1.{space}"] = y1 + rho * (v - z1)
            moment.state[f"y2.{space}"] = y2 + rho * (v - z2)

    def harden(self, weight: Tensor, aux: Tensors, mask: Tensor, moment: Moment) -> Tensor:
        return weight * mask


@method(stage="during", paper="Li et al., CVPR 2019")
def factorized_filters(
    amount: float = 0.5,
    *,
    lr: float = 0.1,
    mix: float = 0.99,
    weak: float = 0.5,
    strong: float = 5.0,
    end: float = 0.6,
) -> Method:
    r"""Filters $v_i W_i$ with $v \in \{0, 1\}^n$, $\sum v = k$, as a box, a plane and a sphere.

    $\{0,1\}^n$ is where the box meets the sphere $\lVert v - 1/2 \rVert^2 = n/4$. With $z_1$ in the
    box with $\sum z_1 = k$ and $z_2$ on the sphere, each step moves v along

    $$\alpha\,(y_1 + y_2 + \rho\,(2v - z_1 - z_2)) + (1 - \alpha)\,\partial L/\partial v,$$

    then $z_i$ to the nearest point of its set from $v + y_i/\rho$, and
    $y_i \leftarrow y_i + \rho\,(v - z_i)$. At ``end`` the k largest v become 1, the others 0, and
    what is left is trained.

    Args:
        amount: Fraction of the filters of each layer that goes, 1 - k/n.
        lr: Of v (SGD).
        mix: $\alpha$.
        weak, strong: $\rho$ at first and at ``end``; ``lr`` times twice ``strong`` at most 1.
        end: Part of training with scalars.

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> factorized_filters(0.5).gate.mix
        0.99
    """
    if not 0 <= mix <= 1 or not 0 < weak <= strong or not 0 < end <= 1:
        raise ConfigError(
            f"factorized_filters: mix={mix}, weak={weak}, strong={strong}, end={end}: mix in "
            "[0, 1], 0 < weak <= strong, end in (0, 1]"
        )
    gate = Binary(lr=lr, mix=mix, weak=weak, strong=strong, end=end)
    return Method(amount, criterion=None, granularity="channel", gate=gate)
