"""Graph lottery tickets (UGS): which edges and which weights of a graph network are enough."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur import schedule as schedules
from secateur.engine.batches import Loss, task_loss
from secateur.engine.masks import MaskSet, keep_top, weights_of
from secateur.errors import ConfigError, DataError
from secateur.granularity.choose import choose
from secateur.granularity.registry import units
from secateur.measure.calling import describe, evaluating
from secateur.recovery import FineTune


@dataclass(frozen=True)
class GraphTicket:
    """A sparser network on a sparser graph.

    Attributes:
        round: From 1 on.
        edges: ``(edges,)`` bool, the columns of the edge index that stay.
        masks: Weights that stay.
        weights: State dict of the ticket trained from the initial weights, on the CPU.
        score: What ``evaluate`` said of it, or None.
    """

    round: int
    edges: Tensor
    masks: MaskSet
    weights: Mapping[str, Tensor]
    score: float | None


def graph_tickets(
    model: nn.Module,
    recovery: FineTune,
    *,
    amount: float,
    edges: float,
    data: tuple[Tensor, Tensor, Tensor],
    steps: int = 10,
    strength: tuple[float, float] = (1e-2, 1e-2),
    evaluate: Callable[[nn.Module, Tensor], float] | None = None,
    ignore: tuple[str, ...] = (),
) -> tuple[GraphTicket, ...]:
    r"""Train masks on edges and weights with the network, remove the lowest, rewind, and repeat.

    Each round trains $f(m_g \odot A,\, m_\theta \odot \theta)$ from the initial $\theta_0$ with
    $s_g \lVert m_g \rVert_1 + s_\theta \lVert m_\theta \rVert_1$ added to the loss, removes the
    weights of smallest $|m_\theta|$ and the edges of smallest $m_g$, and trains what is left from
    $\theta_0$ with hard masks. The network sees $\max(m_g, 0)$, lest a degree become negative.
    Both directions of an edge are one; loops that the network adds by itself are in no mask.

    Args:
        model: The network at its initial weights, called as ``model(features, edge_index,
            edge_weight=weights)`` or without the last; it stays as it is.
        recovery: How both are trained, as ``FineTune(epochs=200, optimizer="adamw")``.
        amount: Fraction of the weights removed after the last round.
        edges: Fraction of the edges removed after the last round.
        data: Features, edge index ``(2, edges)`` and target of one graph.
        steps: Rounds; each removes the same fraction of what is left.
        strength: $s_g$ and $s_\theta$.
        evaluate: (model, edge index) -> number, in evaluation mode without gradients.
        ignore: Globs over layers that stay dense.

    Raises:
        ConfigError: A forward without ``edge_weight``, or a value out of range.
        DataError: No graph.

    Example:
        >>> from secateur.zoo.networks.gcn import GCN
        >>> index = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]])
        >>> data = (torch.eye(4), index, torch.tensor([0, 0, 1, 1]))
        >>> how = FineTune(epochs=2, progress=False)
        >>> net = GCN(4, 8, 2)
        >>> (found,) = graph_tickets(net, how, amount=0.5, edges=1 / 3, data=data, steps=1)
        >>> int(found.edges.sum()), found.masks.sparsity
        (4, 0.5)

    Paper: Chen et al., arXiv:2102.06790.
    """
    if "edge_weight" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"the forward of {type(model).__name__} has no edge_weight: add the argument, and "
            "multiply messages and degrees by it"
        )
    index = data[1]
    if index.dim() != 2 or len(index) != 2 or index.is_floating_point():
        raise DataError(f"the edge index is {describe(index)}: give whole numbers (2, edges)")
    features, _, target = data
    pair = torch.unique(index.sort(0).values, dim=1, return_inverse=True)[1]
    parameters = weights_of(model, ignore)
    kept = torch.ones(int(pair.max()) + 1, dtype=torch.bool)
    masks = MaskSet({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})
    whole = schedules.find("exponential", amount).amounts(steps)
    thinner = schedules.find("exponential", edges).amounts(steps)
    cut = units("element", parameters)
    found = []
    for number, (of_weights, of_edges) in enumerate(zip(whole, thinner, strict=True), 1):
        soft = _Soft(model, masks, kept, pair)
        loss = partial(_with_lasso, soft, strength, recovery.loss)
        replace(recovery, loss=loss).heal(soft, None, [data])
        scores = soft.scores()
        masks = masks & MaskSet(choose(scores, cut, of_weights, "global"))
        size = soft.edges.detach().cpu().masked_fill(~kept, -torch.inf)
        kept = keep_top(size, round(len(kept) * (1 - of_edges)))
        left = kept[pair]
        ticket = copy.deepcopy(model)
        recovery.heal(ticket, masks, [(features, index[:, left], target)])
        score = None
        if evaluate is not None:
            with evaluating(ticket):
                score = float(evaluate(ticket, index[:, left]))
        weights = {n: t.detach().cpu().clone() for n, t in ticket.state_dict().items()}
        found.append(GraphTicket(number, left, masks, weights, score))
    return tuple(found)


class _Soft(nn.Module):
    """The network with a trained factor before each weight and each edge that is left."""

    def __init__(self, model: nn.Module, masks: MaskSet, kept: Tensor, pair: Tensor) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.names = list(masks)
        self.hard = [masks[n].to(model.get_parameter(n)) for n in self.names]
        self.factors = nn.ParameterList(m.clone() for m in self.hard)
        self.kept, self.pair = kept.to(self.hard[0]), pair
        self.edges = nn.Parameter(self.kept.clone())

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        weights = {
            n: self.model.get_parameter(n) * f * m
            for n, f, m in zip(self.names, self.factors, self.hard, strict=True)
        }
        by_edge = (self.edges.relu() * self.kept)[self.pair]  # or a degree could be negative
        return functional_call(self.model, weights, (features, index), {"edge_weight": by_edge})

    def lasso(self, strength: tuple[float, float]) -> Tensor:
        of_edges = (self.edges.relu() * self.kept).sum()
        of_weights = sum((f * m).abs().sum() for f, m in zip(self.factors, self.hard, strict=True))
        return strength[0] * of_edges + strength[1] * of_weights

    def scores(self) -> dict[str, Tensor]:
        return {
            n: f.detach().abs().masked_fill(m == 0, -torch.inf)
            for n, f, m in zip(self.names, self.factors, self.hard, strict=True)
        }


def _with_lasso(
    soft: _Soft, strength: tuple[float, float], loss: Loss | None, output: Any, target: Any
) -> Tensor:
    return task_loss(output, (target,) * 2, loss) + soft.lasso(strength)
