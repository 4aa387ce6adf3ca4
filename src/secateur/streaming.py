"""``sparsify_folder``: prune a checkpoint on disk that does not fit into memory, block by block."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.engine.batches import run, tensors_of
from secateur.engine.blocks import Block, find_blocks
from secateur.engine.calibration import calibration
from secateur.engine.checkpoint import digest
from secateur.engine.finished import Finished
from secateur.engine.layerwise import solve_blocks
from secateur.engine.masks import FORMAT, MaskSet
from secateur.engine.parallel import agreed, place
from secateur.engine.sequential import Propagate
from secateur.engine.shards import INDEX, Shards, copy_files, join, open_shards, read_metadata
from secateur.engine.streamed import Streamed
from secateur.errors import ConfigError, StoreError
from secateur.files import replacing
from secateur.integrations import pretrained
from secateur.measure.calling import evaluating
from secateur.methods.recipe import recipe
from secateur.sparsify import (
    SparsityReport,
    job_of,
    report_of,
)

MASKS = "masks.safetensors"
REPORT = "sparsity.json"
_PROGRESS = ".progress"
_OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class SparsifiedFolder:
    """A pruned checkpoint on disk.

    Attributes:
        folder: Like the source, with other weights; ``from_pretrained`` loads it.
        report: What was done.
    """

    folder: Path
    report: SparsityReport

    @property
    def masks(self) -> MaskSet:
        """What stays, read from the folder: a byte a weight in memory."""
        return MaskSet.load(self.folder / MASKS)


def sparsify_folder(
    source: str | Path,
    out: str | Path,
    method: Any = None,
    *,
    amount: float | None = None,
    pattern: str | tuple[int, int] | None = None,
    data: Iterable[Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    amounts: Mapping[str, float] | None = None,
    ignore: Iterable[str] = (),
    propagate: Propagate = "pruned",
    true_sequential: bool = False,
    tune: int | None = None,
    dtype: torch.dtype | None = None,
    spill: bool = False,
    progress: bool = True,
    **options: Any,
) -> SparsifiedFolder:
    """Prune a Hugging Face checkpoint that may be larger than memory, as ``sparsify`` would.

    In memory are one block, what lies outside of the blocks, and the activations. The result is a
    copy of the source: the same files, tensors, types and places, with pruned weights, and beside
    them ``masks.safetensors`` and ``sparsity.json``. The source is only read. A run that was killed
    goes on when the same call is made again, and gives the same bits: until the result is whole, it
    is in a hidden folder beside ``out``. Under ``torchrun``, as ``sparsify``, with one folder that
    all processes see.

    Args:
        source: Folder with ``config.json`` and safetensors files of a model of transformers.
        out: Folder that will be made.
        method, amount, pattern, data, masks, amounts, ignore, propagate, true_sequential, tune: As
            of ``sparsify``, whose default without its ``scope`` this is: all layers lose the same.
        dtype: Type to compute in; default: the checkpoint's. Results are stored in the
            checkpoint's, and blocks see those before them as stored.
        spill: Keep activations on disk too.
        progress: Show a bar on standard error.
        **options: Of the method.

    Raises:
        ConfigError: An unknown name, a value out of range, or no usable config.
        DataError: Calibration is missing, empty, does not fit the model, or is not finite.
        StoreError: Files of the source are missing or damaged, ``out`` exists, an unfinished run
            with other arguments is in the way, or the disk is full.

    Example:
        >>> result = sparsify_folder("dense", "pruned", "wanda", amount=0.5, data=batches)
        >>> result.report.sparsity
        0.5
    """
    began = time.perf_counter()
    source, out = Path(source), Path(out)
    if out.exists():
        raise StoreError(f"{out} is there already: give the name of a new folder")
    shards = open_shards(source)
    model = pretrained.build(source, dtype)
    names = pretrained.names(model, shards)
    if masks is not None:
        MaskSet(masks).check(model)
    method, tune = recipe(method, tune, pattern is not None or masks is not None)
    chosen, job = job_of(
        model, method, amount=amount, pattern=pattern, masks=masks,
        amounts=amounts, ignore=ignore, propagate=propagate, true_sequential=true_sequential,
        tune=tune, **options,
    )  # fmt: skip
    if "gradients" in job.solver.needs:
        raise ConfigError(
            f"method {chosen.name} needs gradients of the loss, for which the whole model must be "
            "in memory: load it and call sparsify, or choose a method that looks at inputs"
        )
    samples = list(calibration(model, data)) if job.data or data is not None else []
    given = {
        "data": digest(tensors_of(samples)),
        "dtype": str(dtype),
        "weights": shards.identity(),
    }
    job = replace(job, identity={**job.identity, **given})
    unfinished = out.with_name(f".{out.name}.unfinished")
    with agreed():
        if place()[0] == 0:
            _copy(shards, unfinished)
    copy = open_shards(unfinished)
    streamed = Streamed(model, shards, copy, names)
    blocks = find_blocks(model)
    if job.data:
        blocks = _seen_blocks(streamed, blocks, pretrained.head(model), samples[0])
    solution = solve_blocks(
        model, samples, job, propagate=propagate, blocks=blocks, streamed=streamed,
        checkpoint=unfinished / _PROGRESS, spill=unfinished if spill else None, progress=progress,
    )  # fmt: skip
    report = report_of(chosen, solution, model, began)
    with agreed():
        if place()[0] == 0:
            _finish(unfinished, report, len(blocks))
            unfinished.replace(out)
    return SparsifiedFolder(out, report)


def companions(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold no weights: configs, the tokenizer, a licence."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.endswith((*_OTHER_WEIGHTS, INDEX))
    ]


def _seen_blocks(
    streamed: Streamed, expected: Sequence[Block], head: Sequence[str], sample: Any
) -> tuple[Block, ...]:
    """The blocks in the order of their calls, from one forward; the rest is loaded for good."""
    parts = [*(block.name for block in expected), *head]
    streamed.outside(parts)
    with evaluating(streamed.model), streamed.passing(parts):
        return find_blocks(streamed.model, lambda: run(streamed.model, sample))


def _copy(shards: Shards, target: Path) -> None:
    """The source's files in the folder of the result, as far as they are not there yet."""
    ours = [shards.folder / name for name in (*shards.files, INDEX)]
    files = {*companions(shards.folder), *(path for path in ours if path.is_file())}
    copy_files(sorted(files), target)
    if open_shards(target).digest != shards.digest:
        raise StoreError(
            f"{target} holds an unfinished run on another checkpoint: delete it, or choose another "
            "name for the result"
        )


def _finish(folder: Path, report: SparsityReport, blocks: int) -> None:
    """Masks of all blocks in one file, the report, and no traces of how it was made."""
    progress = folder / _PROGRESS
    finished = Finished(progress, {})
    parts = [finished.masks(number) for number in range(blocks)]
    shapes: dict[str, list[int]] = {}
    for part in parts:
        shapes |= json.loads(read_metadata(part)["shapes"])
    join(parts, folder / MASKS, {"format": FORMAT, "shapes": json.dumps(shapes)})
    try:
        with replacing(folder / REPORT) as temporary:
            temporary.write_text(report.json(), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{folder / REPORT} could not be written: {error}") from error
    shutil.rmtree(progress)
