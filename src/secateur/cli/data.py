"""Where data come from: ``zoo:fashion-mnist`` or a user's ``file.py:loaders``; how a model does."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from secateur.cli import code
from secateur.errors import ConfigError, DataError
from secateur.names import unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.report import Metric

FORMS = "zoo:NAME, FILE.py:FUNCTION or package.module:FUNCTION"
_SAMPLES = 256  # that are hashed where the data are no tensors
_BATCHES = 16  # that are hashed where there is no data set


@dataclass(frozen=True)
class Data:
    """Batches to score and heal by, and others to judge by.

    Attributes:
        train: Batches, (inputs..., target) or dicts of keyword inputs.
        test: The same, not seen in training; None if there are none.
        description: In words.
    """

    train: Any
    test: Any
    description: str


def resolve(spec: str) -> str:
    """The same spec with the full path of its file."""
    kind, colon, name = spec.partition(":")
    if colon and kind == "zoo":
        return f"zoo:{name.replace('-', '_')}"
    return code.absolute(spec if not spec.endswith(".py") else f"{spec}:loaders")


def find(spec: str, batch_size: int, seed: int) -> Data:
    """The loaders that a spec means.

    A user's function returns a loader, or the pair (train, test) as a tuple; if it has arguments
    called ``batch_size`` and ``seed``, it gets them.

    Raises:
        ConfigError: No such data.
        DataError: They are missing or damaged.
    """
    spec = resolve(spec)
    if spec.startswith("zoo:"):
        return _zoo(spec.partition(":")[2], batch_size, seed)
    from torch import nn

    if not code.is_code(spec):
        raise ConfigError(f"there are no data {spec!r}: data are {FORMS}")
    function = code.find(spec, "loaders")
    takes = inspect.signature(function).parameters if callable(function) else ()
    given = {"batch_size": batch_size, "seed": seed}
    made = code.call(function, spec, **{k: v for k, v in given.items() if k in takes})
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    for part in (train, test):
        # A Sequential can be iterated over, and a text too, but neither gives batches.
        if part is not None and (
            not isinstance(part, Iterable) or isinstance(part, nn.Module | str)
        ):
            raise ConfigError(
                f"{spec} gave a {type(part).__name__}: return a DataLoader or a list of batches, "
                "or the pair (train, test)"
            )
    return Data(train, test, spec)


def _zoo(name: str, batch_size: int, seed: int) -> Data:
    from secateur import zoo

    known = zoo.data_names()
    if name not in (*known, *zoo.names()):
        raise ConfigError(unknown("data set of the zoo called", name, known))
    train, test = zoo.loaders(name, batch_size, seed)
    sizes = f"{len(train.dataset):,} for training, {len(test.dataset):,} for the test"  # type: ignore[arg-type]
    return Data(train, test, f"zoo:{name} ({sizes})")


def fingerprint(train: Any) -> str:
    """A hash of the data, by which another run can tell whether it has the same.

    All of a ``TensorDataset``; of another data set its length and first samples; of other batches
    the first. Generators are as they were afterwards.
    """
    from secateur.engine.order import generators_kept

    sha = hashlib.sha256()
    dataset: Any = getattr(train, "dataset", None)
    tensors = getattr(dataset, "tensors", None)
    with generators_kept(train):
        if tensors is not None:
            what = f"all {len(dataset)} samples"
            _feed(sha, tuple(tensors))
        elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            count = min(len(dataset), _SAMPLES)
            what = f"{count} of {len(dataset)} samples"
            _feed(sha, [len(dataset), *(dataset[i] for i in range(count))])
        else:
            batches = list(islice(train, _BATCHES))
            what = f"the first {len(batches)} batches"
            _feed(sha, batches)
    return f"sha256:{sha.hexdigest()[:16]} over {what}"


def _feed(sha: Any, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        sha.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            sha.update(str(key).encode())
            _feed(sha, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(sha, item)
    else:
        sha.update(repr(value).encode())


def judge(
    test: Any, loss: Callable[..., Tensor] | None = None, batches: int | None = None
) -> tuple[Callable[[nn.Module], float], Metric]:
    """How a model is judged on test batches: by accuracy where targets are classes, else by loss.

    Args:
        test: Batches.
        loss: Function of (output, target), if the model's own or the usual one is not meant.
        batches: Only so many of them.

    Returns:
        A function from a model to a number, and what the number is.
    """
    from secateur.engine.batches import target_of, task_loss
    from secateur.report import Metric

    first = next(iter(test), None)
    if first is None:
        raise DataError("the test data have no batch: give some, or evaluate: none")
    target = target_of(first)
    if loss is None and hasattr(target, "dtype") and not target.is_floating_point():

        def accuracy(model: nn.Module) -> float:
            hits = [
                _hits(output, target_of(batch)) for batch, output in _outputs(model, test, batches)
            ]
            return sum(hit for hit, _ in hits) / max(sum(of for _, of in hits), 1)

        return accuracy, Metric("accuracy on the test data")

    def mean_loss(model: nn.Module) -> float:
        found = [
            float(task_loss(out, batch, loss)) for batch, out in _outputs(model, test, batches)
        ]
        return sum(found) / len(found)

    return mean_loss, Metric("loss on the test data", percent=False, higher_is_better=False)


def _outputs(model: nn.Module, test: Any, batches: int | None) -> Iterator[tuple[Any, Any]]:
    from secateur.engine.batches import run, take
    from secateur.measure.calling import device_of, to_device

    for batch in take(test, batches):
        batch = to_device(batch, device_of(model))
        yield batch, run(model, batch)


def _hits(output: Any, target: Tensor) -> tuple[int, int]:
    """Correct predictions and how many there are; negative targets do not count."""
    from secateur.engine.batches import logits_of

    logits = logits_of(output)
    last = logits.shape[:-1] == target.shape
    if not last and logits.shape[:1] + logits.shape[2:] != target.shape:
        raise DataError(
            f"the model's output {list(logits.shape)} and the targets {list(target.shape)} are no "
            "classification: give evaluate: FILE.py:FUNCTION (a model -> a number)"
        )
    counted = target >= 0
    right = (logits.argmax(-1 if last else 1) == target)[counted]
    return int(right.sum()), int(counted.sum())
