"""Tickets: prune what is left round after round, and let a recovery say what follows.

Each round removes the weights of lowest score among those that are left, so that masks are nested,
and hands network and masks to a recovery. The papers differ in the recovery alone:

| after each pruning | recovery |
|---|---|
| go on with the weights as they are (Han et al., arXiv:1506.02626) | ``fine-tune`` |
| back to the initial weights (arXiv:1803.03635) | ``rewind`` with ``weights``, ``step=0`` |
| back to the weights of step k (arXiv:1912.05671) | ``rewind`` with ``weights``, ``step=k`` |
| back to the learning rate of step k (arXiv:2003.02389) | ``rewind`` without ``weights`` |
| new weights, by their seed the same in every round | ``from-scratch`` |
| whatever a user's loop does | a function ``train(model, masks)`` |

The control of a ticket is its mask with new weights: ``from-scratch`` on ``ticket.masks``, once;
in every round it is a search from other initial weights. One round is one-shot pruning. A ticket
for other data is the same recovery on these data:
``recovery("rewind", weights=early).heal(model, ticket.masks, other_data)``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import recovery as recoveries
from secateur import schedule as schedules
from secateur.engine.batches import require_finite
from secateur.engine.checkpoint import digest, load_state, save_state
from secateur.engine.masks import MaskSet, weights_of
from secateur.errors import ConfigError, StoreError
from secateur.granularity.choose import choose
from secateur.granularity.registry import Units, needs_graph, units
from secateur.measure.calling import evaluating
from secateur.methods.scoring import element_scores

log = logging.getLogger(__name__)
Train = Callable[[nn.Module, MaskSet], Any]


@dataclass(frozen=True)
class Ticket:
    """What a round left.

    Attributes:
        round: From 1 on.
        masks: What stays; part of what the round before kept.
        weights: State dict of the network after this round's recovery, on the CPU.
        score: What ``evaluate`` said of it, or None.
        report: Of the recovery.
    """

    round: int
    masks: MaskSet
    weights: Mapping[str, Tensor]
    score: float | None
    report: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Ticket(round {self.round}: {self.masks.sparsity:.2%} removed, score {self.score})"


def tickets(
    model: nn.Module,
    recovery: Any,
    *,
    amount: float,
    steps: int = 10,
    data: Iterable[Any] | None = None,
    schedule: Any = "exponential",
    criterion: Any = "magnitude",
    scope: Any = "global",
    granularity: Any = "element",
    evaluate: Callable[[nn.Module], float] | None = None,
    loss: Callable[..., Tensor] | None = None,
    ignore: Iterable[str] = (),
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> tuple[Ticket, ...]:
    r"""Prune a trained network in ``steps`` rounds, with a recovery after each.

    After round $l$ of $n$ the fraction $(1 - a)^{l/n}$ is left, exactly, where $a$ is ``amount``;
    of each layer at least one unit.

    Args:
        model: The trained network; it stays as it is.
        recovery: Name, (name, options), a ``Recovery``, or a function ``train(model, masks)`` that
            trains in place and keeps masked weights at zero (``with held(model, optimizer,
            masks):`` around its loop does).
        amount: Fraction of the weights removed after the last round, in [0, 1).
        steps: Rounds.
        data: For the recovery, and for criteria that measure something.
        schedule: How the amount grows; the default removes the same fraction of what is left.
        criterion: Which weights: a criterion of elements.
        scope: How much where: "global", "uniform", "erk", ...
        granularity: What goes as one, inside single parameters.
        evaluate: Model -> number, called in evaluation mode without gradients.
        loss: Of (output, target), for criteria.
        ignore: Globs over layers that stay dense.
        checkpoint: Folder for finished rounds: a search that was killed goes on there.
        seed: Of criteria that draw.

    Returns:
        A ``Ticket`` a round.

    Raises:
        ConfigError: An unknown name, a value out of range, coupled units (``sec.prune`` is for
            channels), or a function whose network is not masked.
        DataError: What the recovery or criterion refuses.
        StoreError: The checkpoint is of another search.

    Example:
        >>> net, data = nn.Linear(8, 2), [(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))]
        >>> how = ("fine-tune", {"progress": False})
        >>> [t.masks.kept for t in tickets(net, how, amount=0.75, steps=2, data=data)]
        [8, 4]
    """
    heal = _healer(recovery, data, model)
    if needs_graph(granularity):
        raise ConfigError(
            f"granularity={granularity!r} couples tensors: sec.prune(schedule=, steps=, recovery=) "
            "does the same for channels"
        )
    amounts = schedules.find(schedule, amount).amounts(steps)
    require_finite(model)
    made = copy.deepcopy(model)
    parameters = weights_of(made, ignore)
    cut = units(granularity, parameters)
    identity = {
        "asked": repr((amount, steps, _named(schedule), _named(criterion), _named(scope),
                       granularity, sorted(parameters), seed)),
        "recovery": _described(recovery),
        "weights": digest(_tensors(model)) if checkpoint is not None else "",
    }  # fmt: skip
    found: list[Ticket] = []
    masks = MaskSet({n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})
    for number, part in enumerate(amounts, 1):
        file = None if checkpoint is None else Path(checkpoint) / f"round-{number}.safetensors"
        if file is not None and file.exists():
            ticket = _read(file, identity, number)
            made.load_state_dict(ticket.weights)
        else:
            scores = element_scores(
                criterion, made, parameters, data=data, loss=loss, seed=seed + number,
                generator=torch.Generator().manual_seed(seed + number), units=cut,
            )  # fmt: skip
            masks = _nested(scores, cut, part, scope, masks)
            masks.apply(made)
            report = heal(made, masks)
            _check(made, masks)
            score = None
            if evaluate is not None:
                with evaluating(made):
                    score = float(evaluate(made))
            weights = {n: t.cpu().clone() for n, t in _tensors(made).items()}
            ticket = Ticket(number, masks, weights, score, report)
            if file is not None:
                _write(file, identity, ticket)
        masks = ticket.masks
        found.append(ticket)
        log.info("%r", ticket)
    return tuple(found)


def _nested(
    scores: Mapping[str, Tensor], cut: Units, amount: float, scope: Any, masks: MaskSet
) -> MaskSet:
    left = {n: s.float().masked_fill(~masks[n].to(s.device), -torch.inf) for n, s in scores.items()}
    return MaskSet(choose(left, cut, amount, scope)) & masks


def _healer(recovery: Any, data: Any, dense: nn.Module) -> Train:
    if callable(recovery) and not hasattr(recovery, "heal"):
        name = getattr(recovery, "__name__", "train")

        def train(model: nn.Module, masks: MaskSet) -> dict[str, Any]:
            recovery(model, masks)
            return {"recovery": name}

        return train
    if isinstance(recovery, tuple | list) and len(recovery) == 2:
        healer = recoveries.recovery(recovery[0], **recovery[1])
    else:
        healer = recoveries.recovery(recovery)
    return lambda model, masks: healer.heal(model, masks, data, dense)


def _check(model: nn.Module, masks: MaskSet) -> None:
    for name, parameter in masks.check(model).items():
        if bool(parameter.detach()[~masks[name].to(parameter.device)].any()):
            raise ConfigError(
                f"{name} is not zero where it is masked after the recovery: keep it so with "
                "lottery.held(model, optimizer, masks) around the loop"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _named(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)


def _described(value: Any) -> Any:
    """A recovery as JSON, by which a checkpoint knows its own search."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "": type(value).__name__,
            **{f.name: _described(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, Mapping):
        if value and all(isinstance(v, Tensor) for v in value.values()):
            return digest(value)
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_described(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _named(value) if callable(value) else str(value)


def _write(file: Path, identity: Mapping[str, Any], ticket: Ticket) -> None:
    state = {
        "identity": identity,
        "masks": dict(ticket.masks),
        "weights": ticket.weights,
        "score": ticket.score,
        "report": ticket.report,
    }
    save_state(file, state)


def _read(file: Path, identity: Mapping[str, Any], number: int) -> Ticket:
    state = load_state(file)
    saved = state.get("identity")
    if saved != identity:
        wrong = [k for k in identity if not isinstance(saved, dict) or saved.get(k) != identity[k]]
        raise StoreError(
            f"{file} is of another search ({', '.join(wrong)} differ): delete it, or give another "
            "checkpoint folder"
        )
    masks = MaskSet(state["masks"])
    return Ticket(number, masks, state["weights"], state["score"], state["report"])
