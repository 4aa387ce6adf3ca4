"""``sparsify``: set weights of a trained model to zero, and let the others make up for it."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from secateur.engine.batches import finite, tensors_of
from secateur.engine.calibration import calibration
from secateur.engine.checkpoint import digest
from secateur.engine.finished import Row, Solution
from secateur.engine.layerwise import Job, solve_blocks, whole_or_not_at_all
from secateur.engine.masks import MaskSet
from secateur.engine.parallel import agreed
from secateur.engine.products import Layer
from secateur.engine.sequential import Propagate
from secateur.engine.target import Target, parse_pattern
from secateur.errors import ConfigError, DataError, StoreError
from secateur.files import path_of, share
from secateur.methods import registry
from secateur.methods.recipe import recipe
from secateur.methods.shares import Share, shares
from secateur.names import match_names, unknown


@dataclass(frozen=True)
class SparsityReport:
    """What was done, layer by layer.

    Attributes:
        method: Its name.
        rows: One a layer, in the order in which they were solved.
        notes: What should be known: layers that saw no token, Gram matrices that were singular.
        parameters: Of the whole model, pruned layers and all others.
        seconds: All of it.
    """

    method: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    parameters: int
    seconds: float

    @property
    def removed(self) -> int:
        """Weights set to zero."""
        return sum(row.removed for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Fraction removed of the layers that were pruned."""
        return self.removed / max(sum(row.total for row in self.rows), 1)

    @property
    def overall(self) -> float:
        """Fraction removed of all parameters."""
        return self.removed / max(self.parameters, 1)

    def json(self) -> str:
        """All of it, as it is saved."""
        return json.dumps({**asdict(self), "sparsity": self.sparsity}, indent=1)

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {self.removed:,} weights of {len(self.rows)} layers are zero, "
            f"{self.sparsity:.1%} of these layers and {self.overall:.1%} of the model, "
            f"in {self.seconds:.0f} s"
        ]
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, repr=False)
class Sparsified:
    """A model with zeros inside its weights, and the masks that say where.

    Attributes:
        model: The pruned model.
        masks: What stays.
        report: What was done.
    """

    model: nn.Module
    masks: MaskSet
    report: SparsityReport

    def __repr__(self) -> str:
        return f"Sparsified({type(self.model).__name__}: {self.report})"

    def save(self, directory: str | Path) -> Path:
        """Write ordinary safetensors, ``masks.safetensors`` and ``sparsity.json`` to a new folder.

        A Hugging Face model is written by its own ``save_pretrained``, so that plain
        ``from_pretrained`` loads it.

        Raises:
            StoreError: The folder is there already, or cannot be written.
        """
        folder = path_of(directory, "a folder")
        if folder.exists():
            raise StoreError(f"{folder} is there already: give the name of a new folder")
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            own = getattr(self.model, "save_pretrained", None)
            if own is not None:
                own(unfinished)
            else:
                save_model(self.model, str(unfinished / "model.safetensors"))
            self.masks.save(unfinished / "masks.safetensors")
            (unfinished / "sparsity.json").write_text(self.report.json(), encoding="utf-8")
            share(unfinished)
            unfinished.replace(folder)
        except OSError as error:
            raise StoreError(
                f"{folder} could not be written: {error}. Free some space or choose another folder."
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return folder


def sparsify(
    model: nn.Module,
    method: Any = None,
    *,
    amount: float | None = None,
    pattern: str | tuple[int, int] | None = None,
    data: Iterable[Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    amounts: Mapping[str, float] | None = None,
    scope: str | tuple[str, Mapping[str, Any]] | None = None,
    ignore: Iterable[str] = (),
    propagate: Propagate = "pruned",
    true_sequential: bool = False,
    tune: int | None = None,
    checkpoint: str | Path | None = None,
    spill: str | Path | None = None,
    inplace: bool = False,
    progress: bool = True,
    **options: Any,
) -> Sparsified:
    """Prune the weights of a trained model's blocks without training.

    The model is walked through block by block: the layers of a block are solved with statistics of
    what they see behind the blocks that are pruned already. What lies outside of the blocks
    (embeddings, head) stays dense, and so do biases and norms.

    Several processes, as ``torchrun`` starts them, share the work if ``torch.distributed`` is
    initialized and all make this call: each runs its part of the batches and solves its part of the
    rows or layers, and all have the same result.

    Args:
        model: Any module whose blocks repeat, as every transformer's do; else layer by layer.
        method: Name, (name, options) or ``Method`` with a layer solver. Default: ADMM, with few
            iterations and much damping.
        amount: Fraction of each layer to remove, in [0, 1).
        pattern: Instead: ``"2:4"``, n of every m consecutive inputs of each output go.
        data: Calibration: batches of bare inputs, (inputs..., target) or dicts of keywords.
        masks: Masks that are given (True = stays), by parameter; the method only updates weights.
        amounts: Globs over names -> amount for these layers; the last that matches counts.
        scope: How the amount is divided among layers: ``uniform``, ``global``, ``owl``,
            ``alpha-pruning`` or ``fisher``, or (name, options); ``amounts`` go before it. Default:
            ``uniform``, but ``fisher`` if no method is named either.
        ignore: Globs over names of layers that stay dense.
        propagate: What the next block is given: ``pruned`` outputs, ``dense`` ones, or ``both``:
            every layer sees the pruned inputs and aims at what it gave on the dense ones, group
            after group as with ``true_sequential`` (docs/lab-notes.md: no gain was measured).
        true_sequential: Gather statistics anew after each group of layers with the same input.
        tune: Passes over the data in which what stays of a block is trained until the block gives
            what it gave before (see ``engine.tune``). Default: none, but one if no method is named
            and there is a pattern or masks.
        checkpoint: Folder for finished blocks: a run that was killed goes on there.
        spill: Folder for activations that do not fit into memory, and for the temporary file of
            ``inplace``.
        inplace: Change ``model`` itself. Should anything fail on the way, its weights are put
            back, for which they are kept in a temporary file; with ``checkpoint`` they are not, the
            finished blocks stay pruned, and the same call on the model loaded anew goes on after
            them.
        progress: Show a bar on standard error.
        **options: Of the method.

    Raises:
        ConfigError: An unknown name, or a value out of range.
        DataError: Calibration is missing, empty, does not fit the model, or is not finite.
        PlanError: The masks are of another model.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = sparsify(net, "wanda", amount=0.5, data=[torch.randn(4, 8)], progress=False)
        >>> result.report.sparsity
        0.5
    """
    began = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"sparsify takes a module, got {type(model).__name__}: a checkpoint on disk is for "
            "sparsify_folder(source, out, ...)"
        )
    with agreed():  # so that no process waits for one that was refused
        ignore = tuple(ignore)
        if masks is not None:
            MaskSet(masks).check(model)
        _require_finite(model)
        even = pattern is not None or masks is not None
        if scope is None:
            scope = "uniform" if even or method is not None else "fisher"
        method, tune = recipe(method, tune, even)
        chosen = registry.find(method, amount, **options)
        samples: list[Any] = []
        if data is not None or tune or (chosen.solver is not None and chosen.solver.data):
            samples = list(calibration(model, data))
        divisible = None if pattern is not None else 0.5 if chosen.amount is None else chosen.amount
        divided = shares(model, scope, divisible, samples, left_alone_by(model, ignore))
        chosen, job = job_of(
            model, chosen, amount=amount, pattern=pattern, masks=masks, amounts=amounts,
            ignore=ignore, propagate=propagate, true_sequential=true_sequential, tune=tune,
            divided=divided,
        )  # fmt: skip
        made = model if inplace else copy.deepcopy(model)
        given = {
            "data": digest(tensors_of(samples)),
            "weights": digest(dict(made.named_parameters())) if checkpoint is not None else "",
        }
    with whole_or_not_at_all(checkpoint, spill) if inplace else nullcontext() as before:
        solution = solve_blocks(
            made, samples, replace(job, identity={**job.identity, **given}), propagate=propagate,
            checkpoint=checkpoint, spill=spill, before=before, progress=progress,
        )  # fmt: skip
    return Sparsified(made, solution.masks, report_of(chosen, solution, made, began))


def job_of(
    model: nn.Module,
    method: Any,
    *,
    amount: float | None,
    pattern: str | tuple[int, int] | None,
    masks: Mapping[str, Tensor] | None,
    amounts: Mapping[str, float] | None,
    ignore: Iterable[str],
    propagate: Propagate,
    true_sequential: bool,
    tune: int | None = None,
    divided: Mapping[str, Share] = MappingProxyType({}),
    **options: Any,
) -> tuple[registry.Method, Job]:
    """What is to be done to which layer; see ``sparsify`` for the arguments.

    ``divided`` are the shares of layers in the amount, where they differ.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    chosen = registry.find(method, amount, **options)
    if chosen.solver is None:
        raise ConfigError(
            f"method {chosen.name} has no solver for one layer: sparsify takes "
            f"{', '.join(_solvers())}; others are for sec.attach or sec.prune"
        )
    solver = chosen.solver
    if propagate == "both":
        solver = replace(solver, needs=solver.needs | {"gram", "cross"})
    parsed = parse_pattern(pattern)
    if parsed is not None and amount is not None and abs(amount - parsed[0] / parsed[1]) > 1e-9:
        raise ConfigError(f"amount={amount} contradicts pattern={pattern!r}: leave one out")
    names = [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_modules() if n]
    if true_sequential and solver.together is not None:
        raise ConfigError(
            f"{chosen.name} solves the layers of a block together, and true_sequential=True one "
            "group after another: leave it out"
        )
    # Corrected for inputs of before the layers in front of it were, a layer would go too far.
    anew = true_sequential or (propagate == "both" and solver.together is None)
    tune = tune or 0
    if tune < 0 or tune != int(tune):
        raise ConfigError(f"tune={tune!r}: give a whole number of passes over the data, 0 for none")
    own = {n: v for glob, v in (amounts or {}).items() for n in _matched([glob], names)}
    for name, value in own.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"the amount of {name} is {value}: give a fraction in [0, 1]")

    def target(layer: Layer) -> Target:
        module = layer.parameter.rpartition(".")[0]
        share = divided.get(layer.name, Share(0.5 if chosen.amount is None else chosen.amount))
        part = own.get(layer.parameter, own.get(module, share.amount))
        if masks is not None and layer.parameter in masks:
            return Target(keep=layer.of(masks[layer.parameter].contiguous()))
        return Target(part, parsed, rows=share.rows)

    identity = {
        "method": repr((chosen.name, sorted(solver.options.items()))),
        "target": repr((chosen.amount, parsed, sorted(own.items()), sorted(ignore))),
        "divided": repr(sorted((name, share.amount) for name, share in divided.items())),
        "walk": repr((propagate, true_sequential, tune)),
        "masks": digest(masks) if masks is not None else "",
    }
    ignored = left_alone_by(model, ignore)
    return chosen, Job(solver, target, ignored, anew, tune, identity)


def report_of(
    method: registry.Method, solution: Solution, model: nn.Module, began: float
) -> SparsityReport:
    """What was done since ``began``, by ``time.perf_counter``."""
    return SparsityReport(
        method.name,
        tuple(solution.rows),
        tuple(solution.notes),
        sum(p.numel() for p in model.parameters()),
        time.perf_counter() - began,
    )


def left_alone_by(model: nn.Module, ignore: Iterable[str]) -> Callable[[str], bool]:
    """Whether a parameter, or a module that it is in, matches one of the globs.

    Raises:
        ConfigError: A glob that matches nothing.
    """
    names = [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_modules() if n]
    ignored = _matched(ignore, names)

    def left_alone(parameter: str) -> bool:
        parts = parameter.split(".")
        return any(".".join(parts[:i]) in ignored for i in range(1, len(parts) + 1))

    return left_alone


def _require_finite(model: nn.Module) -> None:
    """Refuse weights that no score can order."""
    for name, p in model.named_parameters():
        if p.device.type != "meta" and not finite(p):
            raise DataError(
                f"{name} holds NaN or infinite weights, which no method can rank: load the model "
                "again, or look at how it was trained or converted"
            )


def _solvers() -> list[str]:
    return [n for n in registry.names("after") if registry.find(n).solver is not None]


def _matched(globs: Iterable[str], names: list[str]) -> set[str]:
    found: set[str] = set()
    for glob, matched in match_names(globs, names).items():
        if not matched:
            raise ConfigError(unknown("layer that matches", glob, names))
        found.update(matched)
    return found
