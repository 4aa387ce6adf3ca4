"""Solve every layer of a model, block by block, with statistics of what the layer really sees."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from secateur.engine.blocks import find_blocks
from secateur.engine.checkpoint import load_state, save_state
from secateur.engine.gather import Gathered
from secateur.engine.gram import aimed, layer_error
from secateur.engine.products import Layer
from secateur.engine.sequential import (
    Propagate,
    Residence,
    Step,
    block_weights,
    state,
    walk,
)
from secateur.engine.target import Solver, Target
from secateur.errors import DataError, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """What was done to one layer.

    Attributes:
        layer, block: Names.
        removed, total: Weights.
        tokens: How many tokens its statistics are of.
        error: Squared error of its output relative to the output that was aimed at, where the Gram
            matrix is known.
        seconds: Of the solver.
        note: What the solver wants to be known.
    """

    layer: str
    block: str
    removed: int
    total: int
    tokens: int
    error: float | None
    seconds: float
    note: str = ""


@dataclass
class Solution:
    """Masks (True = stays) by parameter, and one row a layer."""

    keep: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Solution) -> None:
        self.keep.update(other.keep)
        self.rows += other.rows
        self.notes += other.notes


@dataclass(frozen=True)
class Job:
    """What to do to the layers.

    Attributes:
        solver: The method's.
        target: From the name of a layer (that of its parameter, with an index for a part).
        ignored: Whether a parameter is left alone.
        true_sequential: Gather statistics anew after each group of layers with the same input.
        identity: What a checkpoint must have been made with.
    """

    solver: Solver
    target: Callable[[Layer], Target]
    ignored: Callable[[str], bool] = lambda _: False
    true_sequential: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)


def solve_blocks(
    model: nn.Module,
    data: Iterable[Any],
    job: Job,
    *,
    propagate: Propagate = "pruned",
    blocks: Any = None,
    residence: Residence | None = None,
    spill: str | Path | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Solution:
    """Solve the layers in place, block by block; a run that was killed goes on where it was.

    Args:
        model: Changed in place.
        data: Calibration batches.
        job: Solver and targets.
        propagate, blocks, residence, spill: See ``sequential.walk``.
        checkpoint: Folder for finished blocks; if it holds a run of the same job, that is resumed,
            and the result is bit for bit that of a run that was not interrupted.
        progress: Show a bar on standard error.

    Raises:
        DataError: No layer was reached, or statistics are not finite.
        StoreError: The checkpoint is of another job, damaged, or cannot be written.
    """
    saved = _Saved(None if checkpoint is None else Path(checkpoint), dict(job.identity))
    solution = saved.load(model)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
        transient=True,
    )
    with bar:
        task = bar.add_task("pruning blocks", total=None)
        for step in walk(
            model,
            data,
            propagate=propagate,
            blocks=blocks,
            residence=residence,
            spill=spill,
            resume=saved.walk,
        ):
            saved.begin(step)
            bar.update(task, total=step.total, completed=step.number)
            done = _solve_block(step, job)
            solution.add(done)
            saved.finish(step, done)
    if not solution.rows:
        raise DataError(
            "no layer of the model was pruned: its blocks multiply no activations with a weight, "
            "or ignore= matches all of them"
        )
    return solution


@contextmanager
def whole_or_not_at_all(model: nn.Module, checkpoint: str | Path | None) -> Iterator[None]:
    """Put the weights of the blocks back if something fails, or say how to go on."""
    before: dict[nn.Parameter, Tensor] = {}
    if checkpoint is None:
        for block in find_blocks(model):
            module = model.get_submodule(block.name)
            before |= {p: p.data.clone() for p in block_weights(module, block).values()}
    try:
        yield
    except BaseException as error:
        for p, data in before.items():
            p.data.copy_(data)
        if checkpoint is not None:
            error.add_note(
                f"The model is pruned in part: load it again and call sparsify with the same "
                f"arguments, and it goes on after the blocks that {checkpoint} holds."
            )
        raise


def _solve_block(step: Step, job: Job) -> Solution:
    """Solve the layers of one block in place, in the order of the calls."""
    done = Solution()
    weights = {n: p for n, p in step.weights().items() if not job.ignored(n)}
    gathered = step.gather(job.solver.needs, weights=weights)
    groups = gathered.groups()
    for number, group in enumerate(groups):
        if job.true_sequential and number:
            only = {layer.name for layer in group}
            gathered = step.gather(job.solver.needs, only, weights)
        for layer in group:
            if layer.name in gathered.leader:
                done.rows.append(
                    _solve_layer(step, layer, weights[layer.parameter], gathered, job, done)
                )
    seen = {layer.name for group in groups for layer in group}
    for name, weight in weights.items():
        if name not in seen and not any(n.startswith(f"{name}[") for n in seen):
            done.notes.append(f"{name} multiplied nothing during calibration: kept as it was")
        elif name not in seen:
            parts = sum(_size(layer) for g in groups for layer in g if layer.parameter == name)
            if parts < weight.numel():
                share = 1 - parts / weight.numel()
                done.notes.append(f"{share:.0%} of {name} saw no token: kept as it was")
    return done


def _size(layer: Layer) -> int:
    """Elements of a layer's matrix."""
    return layer.shape[0] * layer.shape[1]


def _solve_layer(
    step: Step, layer: Layer, parameter: Tensor, gathered: Gathered, job: Job, done: Solution
) -> Row:
    began = time.perf_counter()
    stats, matrix = gathered.stats(layer), layer.of(parameter)
    before = aimed(matrix, stats) if "cross" in stats else matrix.clone()
    solved = job.solver(before, stats, job.target(layer))
    matrix.copy_(solved.weight)
    if layer.parameter not in done.keep:
        done.keep[layer.parameter] = torch.ones_like(parameter, dtype=torch.bool)
    layer.of(done.keep[layer.parameter]).copy_(solved.keep)
    seconds = time.perf_counter() - began
    error = None
    if "gram" in stats:
        whole = layer_error(before, stats.gram)
        error = layer_error(matrix - before, stats.gram) / whole if whole > 0 else 0.0
    if solved.note:
        done.notes.append(solved.note)
        log.warning("%s", solved.note)
    removed = int((~solved.keep).sum())
    return Row(
        layer.name,
        step.block.name,
        removed,
        matrix.numel(),
        stats.tokens,
        error,
        seconds,
        solved.note,
    )


@dataclass
class _Saved:
    """Finished blocks in a folder, one file each, and the outputs of the last one."""

    folder: Path | None
    identity: dict[str, Any]
    walk: dict[str, Any] | None = None

    def load(self, model: nn.Module) -> Solution:
        """Bring back what is finished, into the model too."""
        solution = Solution()
        if self.folder is None or not (self.folder / "walk.safetensors").exists():
            return solution
        saved = load_state(self.folder / "walk.safetensors")
        if saved["identity"] != self.identity:
            differ = [k for k, v in self.identity.items() if saved["identity"].get(k) != v]
            raise StoreError(
                f"{self.folder} holds another run ({', '.join(differ) or 'options'} differ): give "
                "the arguments of that run, or another folder"
            )
        parameters = dict(model.named_parameters())
        for number in range(saved["walk"]["position"]):
            block = load_state(self._file(number))
            for name, value in block["weights"].items():
                if parameters[name].device.type != "meta":
                    parameters[name].data.copy_(value)
            solution.add(Solution(block["keep"], [Row(**r) for r in block["rows"]], block["notes"]))
        self.walk = saved["walk"]
        return solution

    def begin(self, step: Step) -> None:
        """Note that all blocks before this one are finished."""
        if self.folder is not None:
            saved = {"identity": self.identity, "walk": state(step.walk)}
            save_state(self.folder / "walk.safetensors", saved)

    def finish(self, step: Step, done: Solution) -> None:
        if self.folder is not None:
            weights = step.weights()
            save_state(
                self._file(step.number),
                {
                    "weights": {n: weights[n] for n in done.keep},
                    "keep": done.keep,
                    "rows": [asdict(row) for row in done.rows],
                    "notes": done.notes,
                },
            )

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:04}.safetensors"
