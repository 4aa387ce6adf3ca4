"""What is measured about a model on data, in one pass, for everything that scores or solves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import labelled, run, take, task_loss
from secateur.engine.calibration import checked
from secateur.engine.gates import Gates
from secateur.engine.gradients import (
    TWICE,
    Gradients,
    batch_size,
    differentiable,
    sample,
    twice_differentiable,
)
from secateur.engine.inputs import ClassInputs, LayerInputs
from secateur.engine.order import epoch_batches, generators_kept
from secateur.engine.unit_masks import UnitMasks
from secateur.errors import ConfigError, DataError
from secateur.graph import Graph, UnitClass
from secateur.measure.calling import describe, device_of, evaluating, to_device, unfused
from secateur.names import unknown

# Every statistic by name, and what it is of. Those of a parameter have its shape, or go along the
# input axis of its layer; those of a class are one number a unit, shape (size,).
STATISTICS: Mapping[str, str] = {
    "grad": "parameter: mean over batches of the gradient of the loss",
    "grad_sq": "parameter: mean over batches of the squared gradient",
    "sample_grad_sq": "parameter: mean over samples of the squared gradient of each sample's loss",
    "hessian": "parameter: diagonal of the Hessian of the loss, Hutchinson's estimate",
    "hessian_weight": "parameter: mean over batches of the Hessian of the loss times the weights, "
    "over all the parameters that gradients are gathered of",
    "input_norm": "layer weight: root of the mean squared input over tokens, one an input feature",
    "input_mean": "layer weight: mean input over tokens, one an input feature",
    "input_variance": "layer weight: variance of the input over tokens, one an input feature",
    "input_level": "layer weight: root of the mean over samples of the squared mean size of the "
    "input over a sample's tokens, one an input feature",
    "gram": "layer weight: mean over tokens of x x', (input features, input features)",
    "contribution": "layer weight: mean over sampled output positions of the products between what "
    "two input features add to the outputs, (input features, input features)",
    "gate": "class: mean over batches of dL/dz, z = 1 a gate on each unit where it is made",
    "gate_sq": "class: mean over batches of (dL/dz)^2",
    "mask_gradients": "class: dL/dm of every batch, m = 1 a factor on each unit where layers take "
    "it in, (batches, units)",
    "gate_curvature": "class: mean over batches of the Hessian of the loss in all gates times ones",
    "activation": "class: mean absolute value that the next layers see",
    "zero_fraction": "class: fraction of exact zeros that the next layers see",
    "rank": "class: mean rank of the feature maps that the next layers see",
}
# What is not gathered: a training run has it at hand.
AT_HAND: Mapping[str, str] = {"initial": "parameter: what it was when the method was attached"}
GRADIENTS = frozenset({"grad", "grad_sq", "sample_grad_sq"}) | TWICE
GATES = frozenset({"gate", "gate_sq", "gate_curvature"})
INPUTS = frozenset(
    {"input_norm", "input_mean", "input_variance", "input_level", "gram", "contribution"}
)
MASKS = frozenset({"mask_gradients"})
OF_CLASS = GATES | MASKS | {"activation", "zero_fraction", "rank"}


class Stats:
    """What was measured about one parameter or one unit class, by the names in ``STATISTICS``.

    Args:
        name: Qualified name of the parameter, or the name of the class.
        size: Number of units, for a class.
        values: The statistics.

    Example:
        >>> Stats("fc.weight", grad=torch.ones(2)).grad
        tensor([1., 1.])
    """

    def __init__(self, name: str = "", *, size: int = 0, **values: Any) -> None:
        self.name, self.size = name, size
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise DataError(
            f"statistic {name!r} of {self.name or 'this tensor'} was not gathered: "
            "name it in the criterion's needs"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__


@dataclass(frozen=True)
class Statistics:
    """Everything gathered in one pass: of parameters and of unit classes, by name.

    Attributes:
        tensors: Of parameters.
        classes: Of unit classes.
        samples: How many samples were seen.
    """

    tensors: Mapping[str, Stats] = field(default_factory=dict)
    classes: Mapping[str, Stats] = field(default_factory=dict)
    samples: int = 0


def collect(
    model: nn.Module | Graph,
    needs: Collection[str],
    data: Iterable[Any] | None,
    *,
    loss: Callable[..., Tensor] | None = None,
    classes: Sequence[UnitClass] | None = None,
    parameters: Collection[str] | None = None,
    probes: int = 4,
    seed: int = 0,
) -> Statistics:
    r"""Gather all the statistics named in ``needs`` in one pass over ``data``.

    One forward a batch, one backward if a gradient is needed, ``probes`` more for the Hessian, and
    one forward and backward a sample for ``sample_grad_sq``. The model runs in evaluation mode; its
    modes, gradients (``.grad``), flags, hooks and the random generators are as before afterwards.

    Args:
        model: The model, or its graph for statistics of classes.
        needs: Names of ``STATISTICS``.
        data: Batches: (inputs..., target), dicts of keyword arguments, or bare inputs where no loss
            is needed.
        loss: Function of (output, target); default: the output's own ``loss``, else cross-entropy
            (mean squared error for floating targets).
        classes: Classes to gather statistics of; default: all that are free.
        parameters: Names of parameters to gather gradients of; default: those that the classes
            touch, or all of a plain model's.
        probes: Random vectors a batch for ``hessian``.
        seed: For these vectors, and for the order of a shuffling loader.

    Raises:
        ConfigError: An unknown statistic, or one of classes from a plain model.
        DataError: No data, an empty loader, batches that do not fit, a loss that is not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> data = [(torch.ones(1, 2), torch.ones(1, 1))]
        >>> collect(net, {"input_norm"}, data).tensors["weight"].input_norm
        tensor([1., 1.])
    """
    graph = model if isinstance(model, Graph) else None
    network = graph.model if graph is not None else model
    assert isinstance(network, nn.Module)
    needs = frozenset(needs)
    data = _check(network, graph, needs, data)
    classes = list(graph.free.values() if classes is None else classes) if graph else []
    named = dict(network.named_parameters())
    if parameters is None:
        touched = {m.tensor for c in classes for m in c.members} if graph else set(named)
        parameters = [n for n in named if n in touched]
    wanted = {n: named[n] for n in parameters if named[n].is_floating_point()}
    device = device_of(network)
    samples = 0
    with ExitStack() as stack:
        stack.enter_context(generators_kept(data))
        stack.enter_context(evaluating(network))
        stack.enter_context(unfused())
        gradients = Gradients(wanted, needs, probes, seed) if needs & GRADIENTS else None
        gates: list[Gates | UnitMasks] = []
        if graph and needs & GATES:
            gates.append(stack.enter_context(Gates(graph, classes, needs)))
        if graph and needs & MASKS:
            gates.append(stack.enter_context(UnitMasks(graph, classes)))
        observers: list[LayerInputs | ClassInputs] = []
        if needs & INPUTS:
            observers.append(stack.enter_context(LayerInputs(network, needs)))
        if graph and needs & {"activation", "zero_fraction", "rank"}:
            observers.append(stack.enter_context(ClassInputs(graph, classes, needs)))
        if gradients is not None or gates:
            stack.enter_context(differentiable(wanted.values()))
            stack.enter_context(torch.enable_grad())
        batches = checked(network, take(epoch_batches(data, seed, 0)))
        for index, given in enumerate(batches):
            batch = to_device(given, device)
            size = batch_size(batch)
            samples += size
            _one_batch(network, batch, loss, index, gradients, gates, bool(observers))
            if "sample_grad_sq" in needs and gradients is not None:
                with _asleep(observers), ExitStack() as without:
                    for gate in gates:
                        without.enter_context(gate.off())
                    for k in range(size):
                        one = sample(batch, k, size)
                        gradients.add_sample(_loss(network, one, loss, index))
    tensors: dict[str, dict[str, Any]] = {}
    of_classes: dict[str, dict[str, Any]] = {}
    for source, table in (
        (gradients, tensors),
        *((gate, of_classes) for gate in gates),
        *((o, tensors if isinstance(o, LayerInputs) else of_classes) for o in observers),
    ):
        for name, values in (source.result() if source else {}).items():
            table.setdefault(name, {}).update(values)
    sizes = {c.name: c.size for c in classes}
    return Statistics(
        {n: Stats(n, **v) for n, v in tensors.items()},
        {n: Stats(n, size=sizes[n], **v) for n, v in of_classes.items()},
        samples,
    )


def _check(
    network: nn.Module, graph: Graph | None, needs: frozenset[str], data: Iterable[Any] | None
) -> Iterable[Any]:
    for need in needs:
        if need in AT_HAND:
            raise ConfigError(
                f"statistic {need!r} is of a {AT_HAND[need]}, which is known to sec.attach only: "
                "use the criterion while training"
            )
        if need not in STATISTICS:
            raise ConfigError(unknown("statistic", need, STATISTICS))
        if need in OF_CLASS and graph is None:
            raise ConfigError(
                f"statistic {need!r} is of unit classes: pass trace(model, ...) instead"
            )
    if data is None or isinstance(data, str | bytes | Tensor) or not isinstance(data, Iterable):
        raise DataError(
            f"this criterion is measured on data ({', '.join(sorted(needs))}), got "
            f"{type(data).__name__}: pass data=, a loader of (inputs..., target) or dicts of "
            "keyword inputs (on the command line --data FILE.py:loaders); or use a criterion of "
            'weights alone, as "l2"'
        )
    if device_of(network).type == "meta":
        raise DataError(
            "the model is on the meta device and cannot run on data: load its weights first"
        )
    return data


def _loss(network: nn.Module, batch: Any, loss: Callable[..., Tensor] | None, index: int) -> Tensor:
    if loss is None:
        batch = labelled(network, batch)
    value = task_loss(run(network, batch), batch, loss)
    if not value.isfinite():
        raise DataError(
            f"the loss is {value.item()} on batch {index} ({describe(batch)}): look for NaN in the "
            "inputs or the weights, targets out of range, texts of one token (which none follows), "
            "or a loss that overflows"
        )
    return value


def _one_batch(
    network: nn.Module,
    batch: Any,
    loss: Callable[..., Tensor] | None,
    index: int,
    gradients: Gradients | None,
    gates: Sequence[Gates | UnitMasks],
    observed: bool,
) -> None:
    """One forward, and one backward for everything that is averaged over batches."""
    tensors = gradients.tensors if gradients and gradients.per_batch else []
    factors = [z for gate in gates for z in gate.factors.values()]
    if not tensors and not factors:
        if observed:
            with torch.no_grad():
                run(network, batch)
        return
    curved = any(isinstance(gate, Gates) and gate.curved for gate in gates)
    twice = curved or (gradients is not None and bool(TWICE & gradients.needs))
    with twice_differentiable() if twice else nullcontext():
        value = _loss(network, batch, loss, index)
        grads = torch.autograd.grad(
            value, [*tensors, *factors], create_graph=twice, allow_unused=True
        )
        left = grads[len(tensors) :]
        for gate in gates:  # first: the Hessian's diagonal lets go of the graph
            gate.add_batch(left[: len(gate.factors)])
            left = left[len(gate.factors) :]
        if gradients is not None and tensors:
            gradients.add_batch(grads[: len(tensors)])


@contextmanager
def _asleep(observers: Sequence[LayerInputs | ClassInputs]) -> Iterator[None]:
    for observer in observers:
        observer.awake = False
    try:
        yield
    finally:
        for observer in observers:
            observer.awake = True
