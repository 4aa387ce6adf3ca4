"""``attach``: a method acts on a training run through the optimizer's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.engine import ranks
from secateur.engine.batches import require, require_finite
from secateur.engine.masks import MaskSet, weights_of
from secateur.engine.seams import Moment, Rule
from secateur.errors import ConfigError
from secateur.granularity.registry import needs_graph, units
from secateur.graph import Graph, trace
from secateur.methods.registry import Method, belongs, find
from secateur.methods.scoring import needs_initial
from secateur.schedule import registry as schedules
from secateur.training.gating import Gated
from secateur.training.handle import ATTACHED, MASKED, Handle, Sources
from secateur.training.hooks import hook
from secateur.training.resume import restore
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
    state: Mapping[str, Any] | None = None,
    **options: Any,
) -> Handle:
    r"""Let a method act on training; the loop stays as it is.

    Before each of the optimizer's steps penalties are added to the gradients, masks change where
    that is due and the gradients of what is masked are zeroed; after it, weights and the
    optimizer's slots are zero where masked. A step with a gradient that is not finite is skipped.
    Clipping that the loop does sees the loss's gradients only; accumulated gradients count as one
    step. Processes that train together (DistributedDataParallel, fully_shard) attach each; they
    average what is measured on data, and must agree on every mask.

    Args:
        model: The model; names of its parameters never change. Wrappers of ``torch.compile`` and
            ``DistributedDataParallel`` are unwrapped.
        optimizer: Over its parameters; what Accelerate or Lightning wraps around it is unwrapped.
        method: A name (``sec.methods()``), ``(name, options)``, a ``Method``, a ``Penalty``, or a
            ``MaskSet`` that stays as it is.
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
        state: What ``handle.state_dict()`` was, to go on there: nothing is scored, and weights that
            were loaded before stay as they are.
        **options: Of the method.

    Returns:
        A ``Handle``: ``masks``, ``sparsity``, ``state_dict()``, ``finish()``, ``detach()``.

    Raises:
        ConfigError: An unknown method or option, an amount outside [0, 1), a schedule without
            ``steps``, parameters that the optimizer does not hold, a second attachment, or ranks
            that disagree.
        StoreError: A state of another method or model.
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
    given, model, optimizer = model, _unwrapped(model), _innermost(optimizer)
    _require_whole_number("seed", seed, None)
    _require_whole_number("steps", steps, 1)
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise ConfigError(f"scaler= is a {type(scaler).__name__}: give the loop's GradScaler")
    found = penalty_of(method) or _fixed(method)
    if found is None:
        found = find(method, amount, **options)
        if belongs(found) != "sec.attach":
            raise ConfigError(
                f"method {found.name!r} does not act on training: it is for {belongs(found)}; "
                'sec.methods("during") and sec.methods("before") list those for sec.attach'
            )
    elif options or amount is not None:
        raise ConfigError(
            f"a {type(method).__name__} takes no amount or options here: set them when making it"
        )
    _require_whole_number(f"every of method {found.name!r}", found.every, 1)
    if found.drop is not None and not 0 <= found.drop(0.0) <= 1:
        raise ConfigError(
            f"method {found.name!r} would exchange {found.drop(0.0):g} of the weights: a share is "
            "in [0, 1]"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if ATTACHED in optimizer.__dict__:
        raise ConfigError(
            f"this {type(optimizer).__name__} has an attachment already: finish() or detach() it "
            "first"
        )
    if isinstance(method, MaskSet):
        masked = method.check(model)
        parameters = _held(masked, optimizer, held)
    else:
        parameters = _prunable(model, found, optimizer, held, ignore)
    require_finite(model)
    if found.gate is not None:
        ranks.require_whole(model, f"method {found.name!r}")
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
    for name, p in parameters.items():
        if p in MASKED:
            raise ConfigError(
                f"{name} is masked by another attachment: finish() or detach() it first, or leave "
                "it out with ignore="
            )
    moment = Moment(
        step=0,
        steps=steps or 0,
        amount=0.0 if schedule is None else schedule.at(0.0),
        target=float(found.amount or 0.0),
        generator=torch.Generator().manual_seed(seed ^ OWN_STREAM),
        optimizer=optimizer,
        model=model,
        units=cut,
        parameters=parameters,
        masks={n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()},
    )
    if example_inputs is not None and data is None:
        several = isinstance(example_inputs, tuple | list)
        data = [(*example_inputs, None) if several else example_inputs]  # inputs without a target
    _require_same_run(moment, found, seed)
    stream = None if validation is None else Stream(require(validation, "validation="))
    sources = Sources(data, loss, seed, stream)
    handle = Handle(found, moment, cut, schedule, sources, allow_empty, scaler)
    if found.gate is not None:
        handle.gated = Gated(found.gate, cut, moment, scaler)
        if _compiled(given):  # what was compiled before knows no gates, and would not look
            torch.compiler.reset()
    if validation is not None and not (handle.gated and handle.gated.tensors()):
        handle.detach()
        raise ConfigError(f"method {found.name!r} trains no auxiliaries: leave out validation=")
    weights = list(model.parameters()) if found.transform is not None else []
    before = [p.detach().clone() for p in weights]
    if any(needs_initial(c) for c in (found.criterion, found.grow)):
        moment.state.update({f"initial.{n}": ranks.whole(p).detach().clone()
                             for n, p in parameters.items()})  # fmt: skip
    try:
        if state is not None:
            restore(handle, state)
        else:
            _begin(handle, method)
        handle.obey()
    except BaseException:
        with torch.no_grad():
            for p, old in zip(weights, before, strict=True):
                p.copy_(old)
        handle.detach()
        raise
    hook(handle)
    return handle


def _begin(handle: Handle, method: Any) -> None:
    """Rewrite the model, choose the first masks, start the rule."""
    moment, found, schedule = handle.moment, handle.method, handle.schedule
    if found.transform is not None:
        found.transform(moment)
    if handle.gated is not None:
        handle.refresh_gate()
    elif isinstance(method, MaskSet):
        moment.masks = {
            n: ranks.like(method[n].to(p.device), p) for n, p in moment.parameters.items()
        }
    elif (
        found.criterion is not None
        and not found.soft
        and (schedule is None or schedule.at(0.0) > 0)
    ):
        first_masks(handle)
    if found.rule is not None:
        found.rule.start(moment)


def _prunable(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    held: set[int],
    ignore: Iterable[str],
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
    return _held(found, optimizer, held)


def _held(
    found: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, held: set[int]
) -> dict[str, nn.Parameter]:
    missing = [n for n, p in found.items() if id(p) not in held]
    if missing:
        raise ConfigError(
            f"the {type(optimizer).__name__} does not hold {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}: make it from model.parameters(), or "
            "name these layers in ignore="
        )
    return found


def _schedule(method: Method, steps: int | None) -> schedules.Schedule | None:
    if steps is None and (
        method.follows or (method.amount is None and method.schedule != "one-shot")
    ):
        raise ConfigError(
            f"method {method.name!r} follows the progress of the run: give steps=, its number "
            "of optimizer steps"
        )
    if method.amount is None:
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
    if scheduled and steps is None:
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


def _require_whole_number(what: str, value: Any, least: int | None) -> None:
    if value is None and what == "steps":
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        said = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{what} is {value!r}: give a whole number{said}")


def _unwrapped(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model= is a {type(model).__name__}: give a torch.nn.Module")
    while isinstance(
        inner := getattr(model, "_orig_mod", None)
        or (model.module if isinstance(model, DistributedDataParallel) else None),
        nn.Module,
    ):
        model = inner
    return model


def _compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled."""
    return any(
        "_orig_mod" in m._modules or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS evaluates the loss several times in a step, between which masks cannot be kept: "
            "use another optimizer"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer= is a {type(optimizer).__name__}: give a torch.optim.Optimizer"
        )
    return optimizer


def _fixed(method: Any) -> Method | None:
    """Masks as a method that only keeps them."""
    return (
        Method(criterion=None, rule=Rule(), name="masks") if isinstance(method, MaskSet) else None
    )


def _require_same_run(moment: Moment, method: Method, seed: int) -> None:
    p = next(iter(moment.parameters.values()))
    shapes = [(n, tuple(q.shape)) for n, q in moment.parameters.items()]
    said: dict[str, Any] = {
        "the method": method.name,
        "the amount": moment.target,
        "the number of steps": moment.steps,
        "the seed": seed,
        "the parameters": shapes,
    }
    ranks.require_same(said, "attach alike on every rank", p.device)


def penalty_of(method: Any) -> Method | None:
    """A bare penalty as a method that does nothing else."""
    if isinstance(method, nn.Module | str | tuple | list | Method | MaskSet):
        return None
    if hasattr(method, "gradients") and hasattr(method, "shrink"):
        return Method(criterion=None, penalty=method, name=type(method).__name__)
    raise ConfigError(
        f"a method is a name, (name, options), a Method or a Penalty, not {type(method).__name__}"
    )
