"""Walk through a model block by block: what is done to one block changes what the next one sees.

The model's own forward is run every time. Blocks that are finished give what they gave before
instead of computing, the block at hand is computed, and there the forward stops. So every argument
that an architecture passes to its blocks arrives, whatever it is, and only the outputs of the last
finished block have to be kept.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.engine.batches import inputs_of, run
from secateur.engine.blocks import Block, find_blocks
from secateur.engine.checkpoint import load_state, save_state
from secateur.engine.gather import Gathered
from secateur.engine.handed import HANDED, contents, copied, handed, stand_in
from secateur.errors import DataError
from secateur.measure.calling import as_call, evaluating, to_device, unfused

Propagate = Literal["pruned", "dense", "both"]
Residence = Callable[[Block], AbstractContextManager[None]]


class _ReachedError(Exception):
    """The block at hand has been computed: the rest of the forward is not needed."""


@dataclass
class Outputs:
    """What blocks gave on each sample; in memory, or in files of a folder.

    Attributes:
        stream: Whose outputs; part of the names of the files.
        folder: For the files; they outlive the process, so that another can go on.
        values: By block and sample; None for what is in a file.
        stale: Files that are of no more use.
    """

    stream: str
    folder: Path | None = None
    values: dict[tuple[str, int], Any] = field(default_factory=dict)
    stale: list[Path] = field(default_factory=list)

    def __setitem__(self, key: tuple[str, int], value: Any) -> None:
        if self.folder is not None:
            save_state(self._file(key), {"output": value})
            value = None
        self.values[key] = value

    def __getitem__(self, key: tuple[str, int]) -> Any:
        if self.folder is not None:
            return load_state(self._file(key))["output"]
        return self.values[key]

    def state(self) -> list[list[Any]]:
        """Block, sample and value of each; None for what stays in its file."""
        return [[*key, value] for key, value in self.values.items()]

    def restore(self, entries: Iterable[Sequence[Any]]) -> None:
        """Have again what ``state`` gave."""
        self.values = {(block, sample): value for block, sample, value in entries}

    def drop(self, block: str, sample: int | None = None) -> None:
        """Forget a block's outputs, or that on one sample; their files go with ``sweep``."""
        for key in [k for k in self.values if k[0] == block and sample in (None, k[1])]:
            del self.values[key]
            if self.folder is not None:
                self.stale.append(self._file(key))

    def sweep(self) -> None:
        """Delete the files of what was forgotten."""
        for file in self.stale:
            file.unlink(missing_ok=True)
        self.stale.clear()

    def _file(self, key: tuple[str, int]) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.stream}-{key[0] or 'model'}-{key[1]}.safetensors"


def block_weights(module: nn.Module, block: Block) -> dict[str, nn.Parameter]:
    """Parameters of a block's module that may multiply activations, by their name in the model."""
    prefix = f"{block.name}." if block.name else ""
    return {
        f"{prefix}{owner}.{name}".replace("..", ".") if owner else f"{prefix}{name}": p
        for owner, part in module.named_modules()
        if not isinstance(part, nn.Embedding)
        for name, p in part.named_parameters(recurse=False)
        if p.dim() >= 2 and p.is_floating_point()
    }


@dataclass
class Step:
    """One block of the walk, with its weights in place.

    Attributes:
        block: Which one.
        number, total: It is block ``number`` of ``total``, counted from zero.
        module: The block itself.
    """

    block: Block
    number: int
    total: int
    module: nn.Module
    walk: Walk

    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters that may multiply activations, by their name in the model."""
        return block_weights(self.module, self.block)

    def gather(
        self,
        needs: Collection[str] = (),
        only: Collection[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> Gathered:
        """One pass of all samples through the block as it is, for the statistics of its layers.

        Args:
            needs: ``gram``, and ``cross`` where the dense stream runs along.
            only: Names of layers to look at; default: all.
            weights: Parameters to look at; default: all of the block.
            keep: Have the outputs of the block among those of the walk until it is run anew.
        """
        gathered = Gathered(self.weights() if weights is None else weights, needs, only)
        self.walk.gather(self.block, gathered, keep)
        return gathered


@dataclass
class Walk:
    """The samples on their way through the model.

    Where a dense stream runs beside the pruned one, ``before`` holds the weights of the block at
    hand as they were.
    """

    model: nn.Module
    blocks: Sequence[Block]
    samples: Sequence[Any]
    streams: tuple[str, ...]
    outputs: dict[str, Outputs]
    position: int = 0
    before: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def run(self, block: Block, sample: int, stream: str, keep: bool) -> Any:
        """One sample through one block; gives what the block gives."""
        outputs = self.outputs[stream]
        module = self.model.get_submodule(block.name)
        compute = module.forward
        found: list[Any] = []

        def stop(*args: Any, **kwargs: Any) -> Any:
            before = contents(args, kwargs)
            found.append(compute(*args, **kwargs))
            if keep:
                outputs[block.name, sample] = found[0]
                if new := handed(before, args, kwargs):
                    outputs[block.name + HANDED, sample] = new
            raise _ReachedError

        with ExitStack() as stack:
            for name, stand_in in self._stand_ins(outputs, sample):
                stack.enter_context(standing_in(self.model.get_submodule(name), stand_in))
            stack.enter_context(standing_in(module, stop))
            try:
                run(self.model, copied(self.samples[sample]))  # a block may write to its input
            except _ReachedError:
                return found[0]
        raise DataError(
            f"{block.name} was not reached on sample {sample}, though it was on the first: give "
            "samples that take the same way through the model"
        )

    def _stand_ins(self, outputs: Outputs, sample: int) -> Iterator[tuple[str, Callable[..., Any]]]:
        """What finished blocks do instead of computing.

        Every block of a chain gives what the last one gave: only that goes anywhere. It is copied,
        as a model may add to it in place.
        """
        finished = self.blocks[: self.position]
        last = {block.chain or block.name: block.name for block in finished}
        values: dict[str, Any] = {}
        for block in finished:
            name = block.name if block.kept else last[block.chain or block.name]
            if name not in values:
                values[name] = outputs[name, sample]
            key = (block.name + HANDED, sample)
            new = outputs[key] if key in outputs.values else {}
            yield block.name, stand_in(values[name], name == block.name, new)

    def gather(self, block: Block, gathered: Gathered, keep: bool = False) -> None:
        for sample in range(len(self.samples)):
            valid = token_masks(self.samples[sample])
            if "cross" in gathered.needs:
                with self.dense_weights(), gathered.remembering():
                    self.run(block, sample, "dense", keep=True)
            with gathered.watching(valid):
                self.run(block, sample, self.streams[0], keep)

    @contextmanager
    def dense_weights(self) -> Iterator[None]:
        """The block at hand as it was before anything was done to it."""
        now = {p: p.data for p in self.before}
        try:
            for p, data in self.before.items():
                p.data = data
            yield
        finally:
            for p, data in now.items():
                p.data = data

    def has(self, block: Block, stream: str) -> bool:
        """Whether it is known what a block gives on every sample."""
        known = self.outputs[stream].values
        return all((block.name, sample) in known for sample in range(len(self.samples)))

    def propagate(self, block: Block, stream: str, last: bool = False) -> None:
        """Every sample through the block as it is, for what the next block sees.

        ``last``: nothing else will be run on the block's inputs, so each output takes their place.
        """
        for sample in range(len(self.samples)):
            self.run(block, sample, stream, keep=True)
            for name in self._superseded(block) if last else ():
                self.outputs[stream].drop(name, sample)

    def _superseded(self, block: Block) -> list[str]:
        """Finished blocks whose outputs only this block needed."""
        finished = self.blocks[: self.position]
        return [b.name for b in finished if block.chain and b.chain == block.chain and not b.kept]

    def finish(self, block: Block, commit: Callable[[Walk], None] | None) -> None:
        """Forget what only this block needed; files go when it is noted that they may."""
        superseded = self._superseded(block)
        self.position += 1
        for outputs in self.outputs.values():
            for name in superseded:
                outputs.drop(name)
            if self.position == len(self.blocks):
                for name in {name for name, _ in outputs.values}:
                    outputs.drop(name)
        if commit is not None:
            commit(self)
        for outputs in self.outputs.values():
            outputs.sweep()

    def state(self) -> dict[str, Any]:
        """What is needed to go on after the blocks that are finished; files stay where they are."""
        outputs = {stream: outputs.state() for stream, outputs in self.outputs.items()}
        return {"position": self.position, "outputs": outputs}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.position = saved["position"]
        for stream, entries in saved["outputs"].items():
            self.outputs[stream].restore(entries)


def walk(
    model: nn.Module,
    data: Iterable[Any],
    *,
    propagate: Propagate = "pruned",
    blocks: Sequence[Block] | None = None,
    residence: Residence | None = None,
    spill: str | Path | None = None,
    resume: Mapping[str, Any] | None = None,
    commit: Callable[[Walk], None] | None = None,
) -> Generator[Step, None, None]:
    """Yield the blocks one after another; what the caller does to a block, the next one sees.

    Args:
        model: Runs in evaluation mode without gradients; modes come back afterwards.
        data: Batches as everywhere: bare inputs, (inputs..., target) or dicts of keywords.
        propagate: What the next block is given: ``pruned``, the outputs of the changed block;
            ``dense``, those of the block as it was; ``both``, the changed ones, while the dense
            ones run along for ``cross`` statistics.
        blocks: The blocks; default: ``find_blocks``.
        residence: Makes the weights of a block present for a while, as ``Streamed`` does.
        spill: A folder of this walk's own, for outputs that do not fit into memory.
        resume: What ``state`` of an earlier walk gave; blocks before it are skipped.
        commit: Called whenever a block is finished, so that ``state`` can be kept.

    Raises:
        DataError: The model does not run on a batch.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> for step in walk(net, [torch.ones(1, 2)]):
        ...     nn.init.zeros_(step.module.weight)
        >>> bool((net(torch.ones(1, 2)) == net[1].bias).all())
        True
    """
    device = _home(model)
    samples = [to_device(batch, device) for batch in data]
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(unfused())
        stack.enter_context(without_cache(model))
        if blocks is None:
            blocks = find_blocks(model, lambda: run(model, copied(samples[0])))
        streams = {"pruned": ("pruned",), "dense": ("dense",), "both": ("pruned", "dense")}
        outputs = {
            stream: Outputs(stream, None if spill is None else Path(spill))
            for stream in streams[propagate]
        }
        here = Walk(model, blocks, samples, streams[propagate], outputs)
        if resume is not None:
            here.restore(resume)
        for number in range(here.position, len(blocks)):
            block = blocks[number]
            with residence(block) if residence is not None else nullcontext():
                module = model.get_submodule(block.name)
                if here.streams == ("pruned", "dense"):
                    here.before = {p: p.data.clone() for p in module.parameters()}
                elif "dense" in here.streams:
                    here.propagate(block, "dense")
                yield Step(block, number, len(blocks), module, here)
                if here.before and not here.has(block, "dense"):
                    with here.dense_weights():
                        here.propagate(block, "dense", last=True)
                here.before = {}
                if "pruned" in here.streams and number + 1 < len(blocks):
                    here.propagate(block, "pruned", last=True)
            here.finish(block, commit)


def _home(model: nn.Module) -> torch.device:
    """Where the model computes: weights that are not there yet say nothing about it."""
    tensors = chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))


def token_masks(batch: Any) -> list[Tensor]:
    """Masks over tokens among the inputs of a batch, by the names that Hugging Face gives them."""
    _, kwargs = as_call(inputs_of(batch))
    names = ("attention_mask", "decoder_attention_mask")
    return [kwargs[n] for n in names if isinstance(kwargs.get(n), Tensor) and kwargs[n].dim() == 2]


@contextmanager
def standing_in(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a while; the module and its attributes stay where they are."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """No key-value cache meanwhile: replayed blocks would leave it out of step.

    The encoder and the decoder of a model may have a config of their own.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            configs[id(config)] = config
    before = [config.use_cache for config in configs.values()]
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in zip(configs.values(), before, strict=True):
            config.use_cache = value
