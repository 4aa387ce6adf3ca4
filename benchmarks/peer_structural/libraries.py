"""The two libraries behind one question: half of this model, without hints, please.

Each function makes a model smaller in place. It is given the model, its inputs, the names of the
layers that make the model's outputs (which nobody wants narrower), a clock, a criterion, and what
to do once it is decided what goes. It gives back what the library says of the result:
``announced``, that removing will differ from zeroing.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.coverage.oracle import tensors_of
from torch import Tensor, nn

from secateur.errors import MissingExtraError

AMOUNT = 0.5
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Clock:
    """CPU seconds of this process, by the name of the step that they went to."""

    seconds: dict[str, float] = field(default_factory=dict)
    step: str = ""
    on_step: Callable[[str], None] = lambda _: None
    _began: float = 0.0

    def enter(self, step: str) -> None:
        """The step before ends, this one begins; the empty name only ends."""
        now = time.process_time()
        if self.step:
            self.seconds[self.step] = self.seconds.get(self.step, 0.0) + now - self._began
        self.step, self._began = step, now
        if step:
            self.on_step(step)


def torch_pruning() -> Any:
    """The module ``torch_pruning``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise MissingExtraError(
            "the comparison needs Torch-Pruning: pip install 'secateur[bench]'"
        ) from error
    return tp


def ours(
    model: nn.Module,
    inputs: Inputs,
    outer: list[str],
    clock: Clock,
    criterion: str,
    decided: Callable[[nn.Module], None] = lambda _: None,
) -> dict[str, Any]:
    """secateur: trace, plan, apply. ``outer`` is not used: the graph knows."""
    from secateur.graph import trace
    from secateur.plan.select import plan

    args, kwargs = inputs
    clock.enter("graph")
    graph = trace(model, example(model, args, kwargs))
    clock.enter("plan")
    half = plan(graph, amount=AMOUNT, criterion=criterion, seed=0)
    decided(model)
    clock.enter("apply")
    half.apply(model, inplace=True)
    clock.enter("")
    return {"announced": not half.exact}


def theirs(
    model: nn.Module,
    inputs: Inputs,
    outer: list[str],
    clock: Clock,
    criterion: str,
    decided: Callable[[nn.Module], None] = lambda _: None,
    heads: dict[str, int] | None = None,
    amount: float = AMOUNT,
) -> dict[str, Any]:
    """Torch-Pruning: its pruner with the output layers left alone, and one step of it.

    The pruner builds the dependency graph ("graph") and enumerates its groups ("plan"); the step
    enumerates them again, scores and prunes ("apply"). ``heads`` is the hint that it needs for
    attention: the number of heads of each projection, by name.
    """
    tp = torch_pruning()
    args, kwargs = inputs
    importance = {
        "random": tp.importance.RandomImportance,
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    }[criterion]()
    modules = dict(model.named_modules())
    build = tp.DependencyGraph.build_dependency

    def timed(*a: Any, **k: Any) -> Any:
        graph = build(*a, **k)
        clock.enter("plan")
        return graph

    clock.enter("graph")
    tp.DependencyGraph.build_dependency = timed
    try:
        pruner = tp.pruner.BasePruner(
            model,
            (args, kwargs),
            importance=importance,
            pruning_ratio=amount,
            ignored_layers=[modules[n] for n in outer if n in modules],
            in_channel_groups={},  # its defaults are shared between pruners
            out_channel_groups={},
            num_heads={modules[n]: count for n, count in (heads or {}).items()},
            forward_fn=lambda m, x: m(*x[0], **x[1]),
            output_transform=differentiable,
        )
    finally:
        tp.DependencyGraph.build_dependency = build
    decided(model)
    clock.enter("apply")
    pruner.step()
    clock.enter("")
    return {}


LIBRARIES = {"secateur": ours, "torch-pruning": theirs}


def differentiable(output: Any) -> list[Tensor]:
    """The tensors of an output through which a gradient flows: what Torch-Pruning starts from."""
    return [t for t in tensors_of(output) if t.grad_fn is not None]


def example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The inputs as ``trace`` takes them: positional ones, or all by keyword."""
    from benchmarks.coverage.cell import merged

    if not kwargs:
        return args
    return merged(model, args, kwargs) if args else kwargs


def output_layers(model: nn.Module, inputs: Inputs) -> list[str]:
    """The layers whose units reach the model's outputs; found for Torch-Pruning, as its only hint.

    They are read off secateur's graph; where it cannot be made, the last layer that runs is taken.
    """
    from secateur.errors import SecateurError
    from secateur.graph import trace
    from secateur.graph.classes import module_of

    model = copy.deepcopy(model)
    try:
        graph = trace(model, example(model, *inputs))
    except SecateurError:
        return last_layer(model, inputs)
    return sorted(
        {
            module_of(member.tensor)
            for c in graph.classes.values()
            if (c.locked or "").startswith("model output")
            for member in c.members
            if member.produces
        }
    )


@torch.no_grad()
def last_layer(model: nn.Module, inputs: Inputs) -> list[str]:
    """The linear or convolutional layer that runs last."""
    ran: list[str] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [
        m.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, m in model.named_modules()
        if isinstance(m, kinds)
    ]
    model(*inputs[0], **inputs[1])
    for hook in hooks:
        hook.remove()
    return ran[-1:]
