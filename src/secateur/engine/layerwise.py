"""Solve every layer of a model, block by block, with statistics of what the layer really sees."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from secateur.engine.blocks import Block, find_blocks
from secateur.engine.checkpoint import load_state, save_state
from secateur.engine.finished import Finished, Row, Solution
from secateur.engine.gather import Gathered
from secateur.engine.gradients import sample_gradients
from secateur.engine.masks import MaskSet
from secateur.engine.padding import unsure_note
from secateur.engine.parallel import add_up, agreed, own, place
from secateur.engine.products import Layer
from secateur.engine.sequential import Propagate, Step, walk
from secateur.engine.solve import lost, relative, solve_layers, wanted
from secateur.engine.statistics import Stats
from secateur.engine.streamed import Streamed
from secateur.engine.target import Solver, Target
from secateur.engine.told import told_layers
from secateur.engine.tune import tune
from secateur.errors import PlanError


@dataclass(frozen=True)
class Job:
    """What to do to the layers.

    Attributes:
        solver: The method's.
        target: From the name of a layer (that of its parameter, with an index for a part).
        ignored: Whether a parameter is left alone.
        true_sequential: Gather statistics anew after each group of layers with the same input.
        tune: Passes over the samples in which what stays of a block is trained.
        identity: What a checkpoint must have been made with.
    """

    solver: Solver
    target: Callable[[Layer], Target]
    ignored: Callable[[str], bool] = lambda _: False
    true_sequential: bool = False
    tune: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> bool:
        """Whether samples are run."""
        return self.solver.data or self.tune > 0


def solve_blocks(
    model: nn.Module,
    data: Iterable[Any],
    job: Job,
    *,
    propagate: Propagate = "pruned",
    blocks: Sequence[Block] | None = None,
    streamed: Streamed | None = None,
    spill: str | Path | None = None,
    checkpoint: str | Path | None = None,
    before: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> Solution:
    """Solve the layers in place, block by block; a run that was killed goes on where it was.

    Args:
        model: Changed in place.
        data: Calibration batches; not looked at by a solver that needs none.
        job: Solver and targets.
        propagate, blocks: See ``sequential.walk``.
        streamed: Where the weights are read and written, if the model has none; the masks are then
            only in the checkpoint, which is needed.
        spill: Folder for activations that do not fit into memory; with a checkpoint they are there.
        checkpoint: Folder for finished blocks; if it holds a run of the same job, that is resumed,
            and the result is bit for bit that of a run that was not interrupted.
        before: Called with each block before it is changed.
        progress: Show a bar on standard error.

    Raises:
        DataError: No layer was reached, or statistics are not finite.
        PlanError: No layer is left to prune.
        StoreError: The checkpoint is of another job, damaged, or cannot be written.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    finished = Finished(folder, job.identity, elsewhere=streamed is not None)
    first = place()[0] == 0
    solution = finished.load(model)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
        transient=True,
    )
    with bar, ExitStack() as stack:
        task = bar.add_task("pruning blocks", total=None)
        if spill is not None and folder is None:
            Path(spill).mkdir(parents=True, exist_ok=True)
            spill = stack.enter_context(tempfile.TemporaryDirectory(dir=spill))
        walked = walk(
            model,
            own(list(data)) if job.data else (),
            propagate=propagate,
            blocks=blocks if job.data or blocks is not None else find_blocks(model),
            residence=streamed,
            spill=spill if folder is None or spill is None else finished.activations,
            resume=finished.walk,
            commit=finished.commit,
        )
        # Closed here: a walk that an error leaves behind gives back its state at some other time.
        for step in stack.enter_context(closing(walked)):
            bar.update(task, total=step.total, completed=step.number)
            if before is not None:
                before(step)
            done = _solve_block(step, job)
            with agreed():
                if streamed is not None and first:
                    streamed.store(step.block)
                if first:
                    finished.block(step, done)
            if streamed is not None:
                streamed.reload(step.block)
                done.masks = MaskSet({})
            solution.add(done)
    if not solution.rows:
        raise PlanError(
            "no layer of the model was pruned: its blocks multiply no activations with a weight, "
            "or ignore= matches all of them"
        )
    return solution


@contextmanager
def whole_or_not_at_all(
    checkpoint: str | Path | None, spill: str | Path | None
) -> Iterator[Callable[[Step], None]]:
    """Put the weights of the blocks back if something fails, or say how to go on.

    Gives what has to be told of each block before it is solved. Its weights wait in a file of
    ``spill`` or of the system's temporary folder: in memory they would be the model once more.
    """
    changed: list[tuple[Path, dict[str, nn.Parameter]]] = []
    if checkpoint is None and spill is not None:
        Path(spill).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=spill if checkpoint is None else None) as folder:

        def remember(step: Step) -> None:
            if checkpoint is None:
                file = Path(folder) / f"{step.number}.safetensors"
                save_state(file, step.weights())
                changed.append((file, step.weights()))

        try:
            yield remember
        except BaseException as error:
            for file, weights in reversed(changed):
                for name, value in load_state(file).items():
                    weights[name].data.copy_(value)
            if checkpoint is not None:
                error.add_note(
                    f"The model is pruned in part: load it again and call sparsify with the same "
                    f"arguments, and it goes on after the blocks that {checkpoint} holds."
                )
            raise


def _solve_block(step: Step, job: Job) -> Solution:
    """Solve the layers of one block in place, in the order of the calls."""
    if not job.data:
        return _solve_unseen(step, job)
    done, keep = Solution(), dict[str, Tensor]()
    weights = {n: p for n, p in step.weights().items() if not job.ignored(n)}
    gathered = _gather(step, job, weights, keep=job.tune > 0)
    groups = gathered.groups()
    prefix = f"{step.block.name}." if step.block.name else ""
    parameters = {f"{prefix}{n}": p for n, p in step.module.named_parameters()}
    # Processes that share the work share that of a whole block, unless the next layers wait for it.
    together = groups if job.true_sequential else [[layer for g in groups for layer in g]]
    before = {n: p.detach().clone() for n, p in weights.items()} if job.tune else {}
    solved: list[tuple[Layer, Stats]] = []
    for number, group in enumerate(together):
        if job.true_sequential and number:
            gathered = _gather(step, job, weights, {layer.name for layer in group})
        there = [(x, gathered.stats(x)) for x in group if x.name in gathered.leader]
        there, notes = job.solver.coupled(there, parameters, job.target)
        done.notes += notes
        solved += there if job.tune else []
        solve_layers(there, weights, job.solver, job.target, step.block.name, keep, done)
    if gathered.unsure:
        done.notes.append(unsure_note(sorted(gathered.unsure)))
    done.masks = MaskSet(keep)
    if job.tune and keep:
        done.notes += tune(step, keep, job.tune)
        done.rows = list(_measured_anew(done.rows, solved, before, weights))
    seen = {layer.name for group in groups for layer in group}
    for name, weight in weights.items():
        if name not in seen and not any(n.startswith(f"{name}[") for n in seen):
            done.notes.append(f"{name} multiplied nothing during calibration: kept as it was")
        elif name not in seen:
            parts = sum(prod(x.shape) for g in groups for x in g if x.parameter == name)
            if parts < weight.numel():
                share = 1 - parts / weight.numel()
                done.notes.append(f"{share:.0%} of {name} saw no token: kept as it was")
    return done


def _measured_anew(
    rows: Sequence[Row],
    layers: Sequence[tuple[Layer, Stats]],
    before: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> Iterator[Row]:
    """Rows with the errors that layers have now; tuning is of blocks, so some may be larger."""
    for row, (layer, stats) in zip(rows, layers, strict=True):
        name = layer.parameter
        aim = wanted(before[name], layer, stats)
        yield replace(row, error=relative([lost(layer.of(weights[name]), aim, stats)]))


def _gather(
    step: Step,
    job: Job,
    weights: Mapping[str, Tensor],
    only: Collection[str] | None = None,
    keep: bool = False,
) -> Gathered:
    """Statistics over the samples of all processes."""
    with agreed():
        gathered = step.gather(job.solver.needs, only, weights, keep)
        if "gradients" in job.solver.needs:
            gathered.gradients = sample_gradients(step.walk.model, step.walk.samples, weights)
    add_up(gathered)
    return gathered


def _solve_unseen(step: Step, job: Job) -> Solution:
    """Solve every matrix that classes and shapes tell, which weights alone decide."""
    done, keep = Solution(), dict[str, Tensor]()
    found, untold = told_layers(step.module, step.block, job.ignored)
    weights = {layer.parameter: p for layer, p in found}
    layers = [(layer, Stats(layer.name, tokens=0)) for layer, _ in found]
    solve_layers(layers, weights, job.solver, job.target, step.block.name, keep, done)
    done.masks = MaskSet(keep)
    done.notes += [
        f"{name} is left whole: whether it multiplies activations is not told by its class (a "
        "method that runs data sees it)"
        for name in untold
    ]
    return done
