"""The training loop of every recovery that trains: skips what is not finite, resumes exactly."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from secateur.engine.batches import require_finite
from secateur.engine.calibration import checked
from secateur.engine.checkpoint import digest, load_state, restore_rng, rng_state, save_state
from secateur.engine.dropout import rescaled_dropout
from secateur.engine.hold import held
from secateur.engine.masks import MaskSet
from secateur.engine.order import epoch_batches, generators_kept
from secateur.errors import ConfigError, DataError, StoreError
from secateur.measure.calling import describe, device_of, evaluating, to_device
from secateur.recovery.optimization import build_optimizer, set_rate
from secateur.recovery.registry import step_of_run

if TYPE_CHECKING:
    from secateur.recovery.fine_tune import FineTune

logger = logging.getLogger(__name__)
_TOO_MANY = 10  # skipped batches in a row after which training is given up


@dataclass
class Place:
    """Where a run is: all that must be saved beside weights, optimizer and generators."""

    epoch: int = 0
    position: int = 0  # batches of this epoch that were used
    step: int = 0
    loss_sum: float = 0.0
    finite: int = 0  # batches of this epoch with a finite loss
    skipped: int = 0
    in_a_row: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    done: bool = False
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Run:
    """One training run: the live objects and the place they have reached."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    how: "FineTune"
    total: int
    last: int  # the step at which it ends: total, or earlier
    identity: dict[str, Any]
    place: Place = field(default_factory=Place)
    best_weights: dict[str, Tensor] | None = None

    @property
    def file(self) -> Path | None:
        folder = self.how.checkpoint
        return None if folder is None else Path(folder) / "recovery.safetensors"

    def save(self) -> None:
        if self.file is None:
            return
        state = {
            "identity": self.identity,
            "place": asdict(self.place),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "best_weights": self.best_weights,
        }
        save_state(self.file, state)

    def resume(self) -> dict[str, Any] | None:
        """Load the checkpoint if there is one; returns the generators' states."""
        if self.file is None or not self.file.exists():
            return None
        state = load_state(self.file)
        _check_identity(state.get("identity"), self.identity, self.file)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.place = Place(**state["place"])
        self.best_weights = state["best_weights"]
        return state["rng"]


def train(
    model: nn.Module,
    data: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    how: "FineTune",
    recovery: str,
    plan: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train ``model`` in place on ``loss_of(batch)``; on an error it is given back as it came.

    Args:
        model: trained in training mode; each module's own mode comes back afterwards.
        data: batches; moved to the model's device.
        loss_of: the loss of a batch, a scalar with a gradient.
        how: everything else.
        recovery: the name in the report and the checkpoint.
        plan: masks are held throughout; what is removed for real needs nothing.
        settings: what else a checkpoint must have been made with.

    Returns:
        ``steps``, ``skipped``, ``history`` (one row an epoch), ``resumed_at``, ...
    """
    _check_numbers(how)
    require_finite(model)
    total = _total_steps(data, how)
    place = _first_place(data, how, total)
    masks = plan if isinstance(plan, MaskSet) else None
    if masks is not None:
        settings["masks"] = digest(masks)
    optimizer = build_optimizer(
        model.parameters(), how.optimizer, how.lr, how.momentum, how.weight_decay
    )
    set_rate(optimizer, how.schedule, 0.0)
    scaler = torch.amp.GradScaler(enabled=how.amp and device_of(model).type == "cuda")
    before = {k: v.detach().to("cpu", copy=True) for k, v in _tensors(model).items()}
    modes = [(module, module.training) for module in model.modules()]
    identity = {
        "recovery": recovery,
        "settings": _settings(how, total) | settings,
        "shapes": {k: [str(v.dtype), list(v.shape)] for k, v in before.items()},
        "weights": "" if how.checkpoint is None else digest(before),
    }
    last = total if how.stop is None else min(how.stop, total)
    run = _Run(model, optimizer, scaler, how, total, last, identity, place)
    start = time.perf_counter()
    try:
        with (
            generators_kept(data),
            torch.enable_grad(),
            held(model, optimizer, masks),
            rescaled_dropout(model, plan, how.rescale_dropout),
        ):
            generators = run.resume()
            resumed_at = None if generators is None else run.place.step
            with _bar(run) as advance:
                while not run.place.done:
                    _epoch(run, data, loss_of, generators, advance)
                    generators = None
    except Exception:
        model.load_state_dict(before, strict=False)
        raise
    finally:
        for module, training in modes:
            module.training = training
        optimizer.zero_grad(set_to_none=True)
    place = run.place
    return {
        "recovery": recovery,
        "steps": place.step - how.start,
        "epochs": len(place.history),
        "skipped": place.skipped,
        "stopped_early": place.stopped_early,
        "resumed_at": resumed_at,
        "history": place.history,
        "seconds": time.perf_counter() - start,
    }


def _epoch(
    run: _Run,
    data: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    generators: dict[str, Any] | None,
    advance: Callable[[], None],
) -> None:
    place, how = run.place, run.how
    batches = epoch_batches(data, how.seed, place.epoch, skip=place.position)
    batches = checked(run.model, batches)
    if generators is not None and place.position:
        restore_rng(generators)
    run.model.train()
    lr = 0.0
    while place.step < run.last and (batch := next(batches, None)) is not None:
        lr = set_rate(run.optimizer, how.schedule, place.step / run.total)
        value = _step(run, to_device(batch, device_of(run.model)), loss_of)
        place.step += 1
        place.position += 1
        if value is None:
            _skip(place, batch)
        else:
            place.loss_sum += value
            place.finite += 1
            place.in_a_row = 0
        advance()
        if place.step % how.every == 0 and place.step < run.last:
            run.save()
    if place.position == 0:
        raise DataError(
            f"epoch {place.epoch} yielded no batch: give a non-empty DataLoader or list (a "
            "generator can be read only once; drop_last=True drops a set smaller than a batch)."
        )
    if place.finite == 0:
        raise DataError(
            f"no batch of epoch {place.epoch} gave a finite loss: look for NaN in the data, lower "
            f"lr (now {lr:g}) or set clip=1.0. The model is as it came."
        )
    _end_epoch(run, lr)


def _step(run: _Run, batch: Any, loss_of: Callable[[Any], Tensor]) -> float | None:
    """One update; ``None`` if the loss or the gradient was not finite and nothing was changed."""
    how, optimizer, scaler = run.how, run.optimizer, run.scaler
    device = device_of(run.model).type
    statistics = _running_statistics(run.model)
    kept = [tensor.clone() for tensor in statistics]  # a NaN would stay in them for ever
    optimizer.zero_grad(set_to_none=True)
    kind = torch.float16 if device == "cuda" else torch.bfloat16
    with torch.autocast(device, dtype=kind, enabled=how.amp):
        loss = loss_of(batch)
    if not loss.requires_grad:
        why = "compute it from the model's output, without detach(), item() or no_grad()."
        raise DataError(f"the loss depends on no trainable parameter: {why}")
    value = loss.item()
    if math.isfinite(value):
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        gradients = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in gradients if p.grad is not None])
        # With a scaler an overflow is normal: it skips the update itself and lowers its scale.
        if scaler.is_enabled() or torch.isfinite(norm):
            if how.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(gradients, how.clip, norm)
            scaler.step(optimizer)
            scaler.update()
            return value
    for tensor, old in zip(statistics, kept, strict=True):
        tensor.copy_(old)
    return None


def _skip(place: Place, batch: Any) -> None:
    place.skipped += 1
    place.in_a_row += 1
    logger.warning(
        "step %d skipped: its loss or gradient is not finite (batch %s)",
        place.step - 1,
        describe(batch),
    )
    if place.in_a_row >= _TOO_MANY:
        raise DataError(
            f"no finite loss for {_TOO_MANY} batches in a row, up to step {place.step - 1}: "
            "look for NaN in the data, lower lr, or set clip=1.0. The model is as it came."
        )


def _end_epoch(run: _Run, lr: float) -> None:
    place, how = run.place, run.how
    mean = place.loss_sum / place.finite
    row: dict[str, Any] = {"epoch": place.epoch, "step": place.step, "loss": mean, "lr": lr}
    score = -mean
    if how.evaluate is not None:
        with evaluating(run.model):
            score = row["score"] = float(how.evaluate(run.model))
    place.history.append(row)
    if how.early_stop is not None:
        if score > place.best:
            place.best, place.best_epoch = score, place.epoch
            run.best_weights = {
                k: v.detach().to("cpu", copy=True) for k, v in _tensors(run.model).items()
            }
        place.stopped_early = place.epoch - place.best_epoch >= how.early_stop
    place.done = place.stopped_early or place.step >= run.last
    if place.done and run.best_weights is not None:
        run.model.load_state_dict(run.best_weights, strict=False)
        run.best_weights = None
    place.epoch += 1
    place.position, place.loss_sum, place.finite = 0, 0.0, 0
    run.save()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def _running_statistics(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]


def _total_steps(data: Iterable[Any], how: "FineTune") -> int:
    if how.steps is not None:
        return how.steps
    if isinstance(data, Iterator) and how.epochs > 1:
        raise DataError(
            "a generator can be read only once: give a DataLoader or a list for several epochs."
        )
    length = _length(data)
    if length is None:
        raise DataError("the loader has no length: say how long to train with steps=.")
    if length == 0:
        why = "drop_last=True drops a set smaller than a batch"
        raise DataError(f"the loader is empty: give it data ({why}).")
    return length * how.epochs


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has __len__ but no length
        return None


def _first_place(data: Iterable[Any], how: "FineTune", total: int) -> Place:
    """Where a run that takes up another at ``start`` begins."""
    if how.start == 0:
        return Place()
    last = total if how.stop is None else min(how.stop, total)
    if not 0 < how.start < last:
        raise ConfigError(f"FineTune(start={how.start}): the run ends at step {last}; start before")
    length = _length(data)
    if not length:
        raise DataError("start= counts batches of epochs: give a loader that has a length.")
    return Place(epoch=how.start // length, position=how.start % length, step=how.start)


def _check_numbers(how: "FineTune") -> None:
    for name in ("epochs", "steps", "every", "early_stop", "stop"):
        value = getattr(how, name)
        if value is not None and value < 1:
            raise ConfigError(f"FineTune({name}={value}): give at least 1.")
    for name in ("lr", "clip"):
        value = getattr(how, name)
        if value is not None and not value > 0:
            raise ConfigError(f"FineTune({name}={value}): give a number above 0.")


def _settings(how: "FineTune", total: int) -> dict[str, Any]:
    names = "lr optimizer momentum weight_decay schedule amp early_stop clip seed start stop"
    chosen = {name: getattr(how, name) for name in (*names.split(), "rescale_dropout")}
    named = {
        k: getattr(v, "__qualname__", "custom") if callable(v) else v for k, v in chosen.items()
    }
    return named | {"steps in all": total}


def _check_identity(saved: Any, expected: dict[str, Any], file: Path) -> None:
    remedy = f"delete {file} to start again, or give another checkpoint folder."
    if not isinstance(saved, dict) or set(saved) != set(expected):
        raise StoreError(f"{file} is not a recovery's checkpoint: {remedy}")
    old, new = saved["shapes"], expected["shapes"]
    for name in [*new, *old]:
        if old.get(name) != new.get(name):
            raise StoreError(
                f"{file} was made for another model: {name} is {old.get(name, 'absent')} there and "
                f"{new.get(name, 'absent')} here; {remedy}"
            )
    if saved["recovery"] != expected["recovery"] or saved["settings"] != expected["settings"]:
        old = saved["settings"] | {"recovery": saved["recovery"]}
        new = expected["settings"] | {"recovery": expected["recovery"]}
        changes = [
            f"{k}: {old.get(k)} there, {new.get(k)} here" for k in new if old.get(k) != new[k]
        ]
        raise StoreError(f"{file} was made with other settings ({'; '.join(changes)}); {remedy}")
    if saved["weights"] != expected["weights"]:
        raise StoreError(f"{file} was started from other weights of the same shapes; {remedy}")


@contextmanager
def _bar(run: _Run) -> Iterator[Callable[[], None]]:
    step, loss = TextColumn(f"healing{step_of_run.get()}"), TextColumn("loss {task.fields[loss]}")
    columns = (step, BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not run.how.progress)
    with bar:
        task = bar.add_task("", total=run.last, completed=run.place.step, loss="-")

        def advance() -> None:
            place = run.place
            loss = f"{place.loss_sum / place.finite:.4f}" if place.finite else "-"
            bar.update(task, completed=place.step, loss=loss)

        yield advance
