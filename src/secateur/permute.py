"""``permute``: put units in an order in which N:M pruning keeps more, and the function as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.masks import weights_of
from secateur.engine.target import parse_pattern
from secateur.errors import ConfigError, PlanError
from secateur.graph import Graph
from secateur.graph.forward import named_tensors, uncopied
from secateur.methods.scoring import element_scores
from secateur.plan.permutation import best_order, kept, places, reordered, rows_along
from secateur.plan.verify import TOLERANCE, distance, outputs_of, randomised


@dataclass(frozen=True, repr=False)
class Permuted:
    """A model whose units are in another order.

    Attributes:
        model: It computes what the model did.
        orders: Class -> which unit is where now, for classes that moved.
        before: Share of the scores that the pattern kept in the old order, of the weights that
            take these classes in.
        after: The same in the new order.
        error: Largest relative difference between the outputs before and after.
    """

    model: nn.Module
    orders: Mapping[str, Tensor]
    before: float
    after: float
    error: float

    def __repr__(self) -> str:
        return f"Permuted({type(self.model).__name__}: {self})"

    def __str__(self) -> str:
        return (
            f"{len(self.orders)} classes in a new order: the pattern keeps {self.after:.2%} of "
            f"the scores instead of {self.before:.2%}; outputs agree to {self.error:.1e}"
        )


@torch.no_grad()
def permute(
    graph: Graph,
    pattern: str | tuple[int, int] = "2:4",
    *,
    criterion: Any = "l1",
    data: Iterable[Any] | None = None,
    loss: Any = None,
    ignore: Iterable[str] = (),
    patience: int = 8,
    seed: int = 0,
    inplace: bool = False,
) -> Permuted:
    r"""Reorder the units of a model so that N:M pruning of it keeps more.

    Of every m consecutive inputs n go, so it matters which inputs are neighbours. All layers that
    take in one class of units share its order, so an order is chosen for the sum over them, and is
    applied wherever the class occurs: to what makes the units, what reads them, and the norms
    between. The model computes what it did, which is checked on its example inputs.

    Args:
        graph: Of the model.
        pattern: ``"n:m"``: of every m inputs n go.
        criterion: What is kept, of elements: "l1" for magnitudes, "ria" with data, ...
        data: For criteria that measure something.
        loss: Of (output, target).
        ignore: Globs over layers that will stay dense.
        patience: How long the search goes on without gain (see ``plan.permutation.best_order``).
        seed: Of the search.
        inplace: Change the traced model itself.

    Returns:
        A ``Permuted``: the model, the orders, and what the pattern keeps without and with them.

    Raises:
        ConfigError: No n:m, or nothing that could be put in another order.
        PlanError: The reordered model computes something else; nothing was changed.
        MissingExtraError: scipy is not installed.

    Example:
        >>> from torch import nn
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(2, 4)
        >>> found = permute(trace(net, x))
        >>> found.after > found.before, torch.allclose(found.model(x), net(x), atol=1e-5)
        (True, True)

    Paper:
        Pool and Yu, Channel permutations for N:M sparsity (NeurIPS 2021); the assignments are
        RIA's (https://openreview.net/forum?id=Tr0lPx9woF).
    """
    parsed = parse_pattern(pattern)
    assert parsed is not None
    n, m = parsed
    model = graph.model
    weights = weights_of(model, ignore)
    with torch.enable_grad():
        scores = element_scores(
            criterion, model, weights, data=data, loss=loss,
            generator=torch.Generator().manual_seed(seed), seed=seed,
        )  # fmt: skip
    orders, moves = {}, []
    total, before, after = 0.0, 0.0, 0.0
    for name, c in graph.free.items():
        found = places(c)
        rows = [
            r
            for member, place in found or ()
            if not member.produces and member.tensor in scores
            if (r := rows_along(scores[member.tensor], member.axis, place, m)) is not None
        ]
        if not rows or found is None:
            continue
        together = torch.cat(rows)
        order = best_order(together, n, m, patience=patience, seed=seed)
        total += float(together.double().sum())
        before += kept(together, n, m)
        after += kept(together[:, order], n, m)
        if not torch.equal(order, torch.arange(c.size)):
            orders[name] = order
            moves += [(member, place, order) for member, place in found]
    if not total:
        raise ConfigError(
            f"no class of units of this {type(model).__name__} is read in groups of {m} by a "
            "weight that may be pruned: look at the trace, at ignore= and at the pattern"
        )
    made = copy.deepcopy(model, uncopied(model))
    tensors = named_tensors(made)
    for member, place, order in moves:
        tensor = tensors[member.tensor]
        tensor.copy_(reordered(tensor, member.axis, place, order))
    error = _agreement(graph, made, seed)
    if inplace:
        for name, tensor in named_tensors(model).items():
            tensor.copy_(tensors[name])
    return Permuted(model if inplace else made, orders, before / total, after / total, error)


def _agreement(graph: Graph, made: nn.Module, seed: int) -> float:
    inputs = randomised(graph.example_inputs, seed)
    old, new = (outputs_of(net, inputs, seed) for net in (graph.model, made))
    error = distance(old, new)
    dtype = next(p.dtype for p in made.parameters() if p.is_floating_point())
    if not error <= TOLERANCE.get(dtype, 1e-4):
        raise PlanError(
            f"with its units in another order this {type(made).__name__} computes something else "
            f"(relative difference {error:.1e}), so it is left as it was: is its output random in "
            "evaluation mode, or does its forward treat single channels by number?"
        )
    return error
