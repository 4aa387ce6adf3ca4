"""Depth: which blocks of a model may be left out, and what the loss is without some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.engine.batches import labelled, require_seen, run, task_loss
from secateur.engine.sequential import standing_in, without_cache
from secateur.errors import ConfigError
from secateur.measure.calling import evaluating, unfused
from secateur.names import match_names, unknown
from secateur.plan.gaps import Absent, Gap, first_of, first_replaced


@dataclass(frozen=True)
class Depth:
    """A model whose depth is searched, and the data to judge by.

    Attributes:
        model: The dense model.
        blocks: Names of the blocks in the order in which they are called.
        outputs: How many outputs each block has, 0 for a plain tensor.
        candidates: What may go: blocks, or parts of blocks.
        batches: Calibration.
        loss: Function of (output, target), or None for the model's own.
        seed: Of whatever is random.
        notes: Where a search says what should be known.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    outputs: tuple[int, ...]
    candidates: tuple[Gap, ...]
    batches: tuple[Any, ...]
    loss: Any = None
    seed: int = 0
    notes: list[str] = field(default_factory=list, compare=False)

    def module(self, name: str) -> nn.Module:
        """A module of the model by its name."""
        return self.model.get_submodule(name)

    def block_of(self, gap: Gap) -> int:
        """The number of the block that a gap is, or is in."""
        inside = (f"{gap.module}.".startswith(f"{b}.") for b in self.blocks)
        return next(k for k, yes in enumerate(inside) if yes)

    def losses(self, gone: Sequence[Gap], more: Sequence[Gap]) -> dict[Gap, float]:
        """The mean loss without ``gone`` and one of ``more``, for each of these.

        The blocks before that one are not computed again: what reaches it is remembered.
        """
        totals = dict.fromkeys(more, 0.0)
        for given in self.batches:
            batch = given if self.loss is not None else labelled(self.model, given)
            reached = self.reaching(batch, gone)
            for gap in more:
                start = self.block_of(gap)
                with self.without([*gone, gap]), self.starting(start, reached[start]):
                    totals[gap] += self.loss_of(self.output(batch), batch)
        return {gap: total / len(self.batches) for gap, total in totals.items()}

    def output(self, batch: Any) -> Any:
        """What the model says to a batch, without gradients and without a cache."""
        with evaluating(self.model), unfused(), without_cache(self.model):
            return run(self.model, batch)

    def loss_of(self, output: Any, batch: Any) -> float:
        return float(task_loss(output, batch, self.loss))

    def reaching(self, batch: Any, gone: Sequence[Gap] = ()) -> list[Tensor]:
        """What reaches each block, and what leaves the last one."""
        seen: dict[Any, Tensor] = {}
        with ExitStack() as stack:

            def note(k: int) -> None:
                def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                    seen[k] = first_of(args, kwargs).clone()

                def after(_: nn.Module, __: Any, output: Any) -> None:
                    seen[k + 1] = (output[0] if isinstance(output, tuple) else output).clone()

                block = self.module(self.blocks[k])
                stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(after).remove)

            for k in range(len(self.blocks)):
                note(k)
            with self.without(gone):
                self.output(batch)
        if not gone:
            require_seen(seen[len(self.blocks)], f"what {self.blocks[-1]} gives")
        return [seen[k] for k in range(len(self.blocks) + 1)]

    @contextmanager
    def without(self, gone: Sequence[Gap]) -> Iterator[None]:
        """The model without these, which are not even computed."""
        with ExitStack() as stack:
            for gap in gone:
                stand_in: Any = Absent(gap.outputs or 0).forward
                if gap.outputs is None:
                    stand_in = _passing(self.outputs[self.blocks.index(gap.module)])
                stack.enter_context(standing_in(self.module(gap.module), stand_in))
            yield

    @contextmanager
    def starting(self, block: int, known: Tensor) -> Iterator[None]:
        """From a block on, which is given what is known to reach it."""

        def given(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if isinstance(args[0] if args else None, Tensor):
                return (known, *args[1:]), kwargs
            name = next(n for n, v in kwargs.items() if isinstance(v, Tensor))
            return args, {**kwargs, name: known}

        with ExitStack() as stack:
            for k in range(block):
                module = self.module(self.blocks[k])
                stack.enter_context(standing_in(module, _passing(self.outputs[k])))
            hook = self.module(self.blocks[block]).register_forward_pre_hook(
                given, with_kwargs=True
            )
            stack.callback(hook.remove)
            yield


def _passing(outputs: int) -> Any:
    """A forward that gives what it is given, in a tuple where the block gave one."""

    def passing(*args: Any, **kwargs: Any) -> Any:
        x = first_of(args, kwargs)
        return first_replaced((x, *[None] * (outputs - 1)), x) if outputs else x

    return passing


def staying(ignore: Sequence[str], known: list[str]) -> set[str]:
    """The names that match one of the globs; one that matches nothing is a ConfigError."""
    stay: set[str] = set()
    for glob, names in match_names(ignore, known).items():
        if not names:
            raise ConfigError("ignore: " + unknown("block or part", glob, known))
        stay.update(names)
    return stay
