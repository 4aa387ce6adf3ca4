"""``attach``: a method acts on a training run through the optimizer's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.batches import require_finite
from secateur.engine.masks import weights_of
from secateur.engine.seams import Moment
from secateur.errors import ConfigError
from secateur.granularity.registry import needs_graph, units
from secateur.graph import Graph, trace
from secateur.methods.registry import Method, find
from secateur.schedule import registry as schedules
from secateur.training.gating import Gated
from secateur.training.handle import ATTACHED, Handle, Sources, penalty_of
from secateur.training.start import first_masks
from secateur.training.validation import Stream

# Networks are often made under the same small seed: with the numbers that made the weights, a
# random mask would keep the largest of them.
OWN_STREAM = 0x5ECA7E


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Any,
    *,
    amount: float | None = None,
    steps: int | None = None,
    data: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
    example_inputs: Any = None,
    ignore: Iterable[str] = (),
    allow_empty: bool = False,
    scaler: Any = None,
    seed: int = 0,
    **options: Any,
) -> Handle:
    r"""Let a method act on training; the loop stays as it is.

    Before each of the optimizer's steps penalties are added to the gradients, masks change where
    that is due and the gradients of what is masked are zeroed; after it, weights and the
    optimizer's slots are zero where masked. A step with a gradient that is not finite is skipped.
    Clipping that the loop does sees the loss's gradients only; accumulated gradients count as one
    step.

    Args:
        model: The model; names of its parameters never change. Pass the module itself, not its
            ``torch.compile``d wrapper (a wrapper is unwrapped).
        optimizer: Over its parameters.
        method: A name (``sec.methods()``), ``(name, options)``, a ``Method`` or a ``Penalty``.
        amount: Fraction removed at the end; default: the method's.
        steps: Optimizer steps of the whole run, for methods with a schedule.
        data: Batches, for methods that score on data.
        validation: Batches, for methods that train auxiliaries: these see the gradients of one of
            these batches a step and never those of the loop (bilevel training). An exact resume
            needs a loader that gives the same batches in the same order.
        loss: Of (output, target); default as in ``sec.prune``.
        example_inputs: For methods on coupled channels.
        ignore: Globs over layers that stay dense.
        allow_empty: Whether a layer may lose all its weights; otherwise its best unit stays.
        scaler: The loop's ``GradScaler``, for methods that train auxiliaries.
        seed: Of everything random.
        **options: Of the method.

    Returns:
        A ``Handle``: ``masks``, ``sparsity``, ``state_dict()``, ``finish()``, ``detach()``.

    Raises:
        ConfigError: An unknown method or option, an amount outside [0, 1), a schedule without
            ``steps``, parameters that the optimizer does not hold, or a second attachment.
        DataError: Weights that are not finite, or data that are missing.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = attach(net, optimizer, "gradual_magnitude", amount=0.5, steps=4)
        >>> for _ in range(4):
        ...     net(torch.randn(2, 4)).square().mean().backward()
        ...     optimizer.step(); optimizer.zero_grad()
        >>> handle.finish().masks.sparsity
        0.5
    """
    model = getattr(model, "_orig_mod", model)
    found = penalty_of(method)
    if found is None:
        found = find(method, amount, **options)
    elif options or amount is not None:
        raise ConfigError("a Penalty takes no amount or options here: set them when making it")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if ATTACHED in optimizer.__dict__:
        raise ConfigError(
            f"this {type(optimizer).__name__} has an attachment already: finish() or detach() it "
            "first"
        )
    for name, p in model.named_parameters():
        if getattr(p, ATTACHED, False):
            raise ConfigError(
                f"{name} is masked by another attachment: finish() or detach() it first"
            )
    parameters = _prunable(model, found, optimizer, held, ignore, example_inputs)
    require_finite(model)
    schedule = _schedule(found, steps)
    graph: Graph | None = None
    if needs_graph(found.granularity):
        if example_inputs is None:
            raise ConfigError(
                f"method {found.name!r} removes {found.granularity}s, which the graph couples: "
                "give example_inputs"
            )
        graph = trace(model, example_inputs)
    cut = units(found.granularity if parameters else "element", parameters, graph)
    if graph is not None:  # what makes a channel is masked with it: biases, norms
        whole = cut.spread({n: torch.ones(k) for n, k in cut.counts.items()})
        named = dict(model.named_parameters())
        parameters = {n: named[n] for n in named if n in whole or n in parameters}
    moment = Moment(
        step=0,
        steps=steps or 0,
        amount=0.0 if schedule is None else schedule.at(0.0),
        target=float(found.amount or 0.0),
        generator=torch.Generator().manual_seed(seed ^ OWN_STREAM),
        optimizer=optimizer,
        model=model,
        parameters=parameters,
        masks={n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()},
    )
    if example_inputs is not None and data is None:
        several = isinstance(example_inputs, tuple | list)
        data = [(*example_inputs, None) if several else example_inputs]  # inputs without a target
    stream = None if validation is None else Stream(validation)
    sources = Sources(data, loss, seed, stream)
    handle = Handle(found, moment, cut, schedule, sources, allow_empty, scaler)
    if found.gate is not None:
        handle.gated = Gated(found.gate, cut, moment)
    if validation is not None and not (handle.gated and handle.gated.tensors()):
        handle.detach()
        raise ConfigError(f"method {found.name!r} trains no auxiliaries: leave out validation=")
    if handle.gated is not None:
        handle.refresh_gate()
    elif (
        found.criterion is not None
        and not found.soft
        and (schedule is None or schedule.at(0.0) > 0)
    ):
        first_masks(handle)
    if found.rule is not None:
        found.rule.start(moment)
    if handle.gated is None and not found.soft:
        handle.enforce()
    _hook(handle)
    return handle


def _prunable(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    held: set[int],
    ignore: Iterable[str],
    example_inputs: Any,
) -> dict[str, nn.Parameter]:
    if method.criterion is None and method.gate is None:  # a penalty alone, or a rule
        found = {n: p for n, p in model.named_parameters() if id(p) in held}
        if not found:
            raise ConfigError(
                f"the {type(optimizer).__name__} holds none of the model's parameters: make it "
                "from model.parameters()"
            )
        if method.rule is None:
            return found
    found = weights_of(model, ignore)
    if not found:
        raise ConfigError(f"{type(model).__name__} has no weights to prune: look at ignore=")
    missing = [n for n, p in found.items() if id(p) not in held]
    if missing:
        raise ConfigError(
            f"the {type(optimizer).__name__} does not hold {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}: make it from model.parameters(), or "
            "name these layers in ignore="
        )
    return found


def _schedule(method: Method, steps: int | None) -> schedules.Schedule | None:
    if method.amount is None:
        if steps is None and method.schedule != "one-shot":
            raise ConfigError(
                f"method {method.name!r} follows the progress of the run: give steps=, its number "
                "of optimizer steps"
            )
        if steps is not None and steps < 1:
            raise ConfigError(f"steps={steps}: give the number of optimizer steps of the run")
        return None
    schedule = schedules.find(
        method.schedule,
        method.amount,
        **(
            {
                "initial": method.schedule.initial,
                "start": method.schedule.start,
                "end": method.schedule.end,
            }
            if isinstance(method.schedule, schedules.Schedule)
            else {}
        ),
    )
    scheduled = schedule.name != "one-shot" or method.drop is not None
    if scheduled and (steps is None or steps < 1):
        raise ConfigError(
            f"method {method.name!r} acts on a schedule and never reaches its target without "
            "steps=, the number of optimizer steps of the run"
        )
    if steps is not None and method.every > steps and scheduled:
        raise ConfigError(
            f"method {method.name!r} looks at its schedule every {method.every} steps, and the run "
            f"has {steps}: it would never act; give every="
        )
    return schedule


def _hook(handle: Handle) -> None:
    optimizer = handle.moment.optimizer

    def before(*_: Any) -> None:
        handle.before_step()

    def after(*_: Any) -> None:
        handle.after_step()

    handle._hooks = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ]
    optimizer.__dict__[ATTACHED] = True
    for p in handle.moment.parameters.values():
        setattr(p, ATTACHED, True)
