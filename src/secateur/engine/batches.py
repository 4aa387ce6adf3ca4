"""What a batch is, ``(inputs..., target)`` or a dict of keywords, and the loss that follows."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.engine.padding import running
from secateur.errors import DataError
from secateur.measure.calling import as_call, describe, words

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[Any, Any], Tensor]


def require(
    data: Iterable[Any] | None, recovery: str, argument: str | None = None
) -> Iterable[Any]:
    """The data, or an error that says who needs them, and as what argument if only in Python."""
    if data is None or not isinstance(data, Iterable):
        give = "give a DataLoader" if argument is None else f"give {argument}, a DataLoader"
        command = " (on the command line --data FILE.py:loaders)" if argument is None else ""
        raise DataError(
            f"{recovery} needs data, got {type(data).__name__}: {give} or a list of batches, each "
            f"(inputs..., target) or a dict of keyword inputs{command}."
        )
    return data


def take(data: Iterable[Any], count: int | None = None) -> Iterator[Any]:
    """The first ``count`` batches (``None``: all); an empty loader is an error."""
    index = -1
    for index, batch in enumerate(islice(data, count)):  # noqa: B007
        yield batch
    if index < 0:
        raise DataError(
            "the loader yielded no batch: give a non-empty DataLoader or list (a generator can be "
            "read only once; drop_last=True drops a set smaller than a batch)."
        )


def require_finite(model: nn.Module) -> None:
    """Refuse a model whose weights are not finite, with the name of the first."""
    for name, tensor in model.named_parameters():
        if not finite(tensor):
            raise DataError(
                f"{name} of {type(model).__name__} holds NaN or Inf: no recovery can mend that; "
                "load the weights again and prune from finite ones."
            )


def finite(tensor: Tensor) -> bool:
    """Whether all elements are, found without a second tensor of their size.

    Example:
        >>> finite(torch.tensor([1.0, torch.nan]))
        False
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def require_numbers(model: nn.Module) -> None:
    """Refuse buffers that hold NaN, as the statistics of a batch norm that saw one."""
    for name, t in model.named_buffers() if isinstance(model, nn.Module) else ():
        if t.is_floating_point() and not t.is_meta and t.isnan().any():
            raise DataError(f"the buffer {name} holds NaN: load the model's state anew")


def require_seen(values: Tensor, what: str) -> None:
    """Refuse what a model gave on data where it is not finite: no comparison would mean anything.

    Example:
        >>> require_seen(torch.ones(2), "the output")
    """
    if not finite(values):
        raise DataError(
            f"{what} is NaN or infinite on this data: look for NaN in the data, and for overflow "
            "in the model's type (run it in float32)"
        )


def require_teacher(teacher: nn.Module | None, model: nn.Module, recovery: str) -> nn.Module:
    """The dense model, or an error that says what it is for."""
    if teacher is None or teacher is model:
        raise DataError(
            f"{recovery} compares with the dense model: pass teacher=, a model other than the "
            "pruned one (plan.apply(dense) leaves the dense one untouched)."
        )
    return teacher


def inputs_of(batch: Any) -> Any:
    """The model's inputs: a tuple without its last element (the target), a dict as it is."""
    if isinstance(batch, tuple | list):
        return tuple(batch[:-1]) if len(batch) > 1 else tuple(batch)
    return batch


def target_of(batch: Any) -> Any:
    """The target: a tuple's last element, the whole of a dict, ``None`` where there is none."""
    if isinstance(batch, tuple | list):
        return batch[-1] if len(batch) > 1 else None
    return batch if isinstance(batch, Mapping) else None


def run(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output on a batch, or a DataError with the batch's shapes and the remedy."""
    try:
        if forward is not None:
            with running(model, batch if isinstance(batch, Mapping) else {}):
                return forward(model, batch)
        inputs = inputs_of(batch)
        args, kwargs = as_call(inputs)
        with running(model, inputs):
            return model(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(
            f"{type(model).__name__} could not be run on the batch {describe(batch)}: "
            f"{words(error)}. A batch is (inputs..., target) or a dict of keywords; for any other "
            "give forward=lambda model, batch: ..."
        ) from error


def logits_of(output: Any) -> Tensor:
    """The main tensor of an output: itself, its ``logits`` or ``out``, or its first element."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("logits", "out"):
            if isinstance(output.get(key), Tensor):
                return output[key]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, tuple | list) and output:
        return logits_of(output[0])
    raise DataError(
        f"the model's output {describe(output)} has no logits that could be found: give "
        "loss=lambda output, target: ... (and forward= to pick a tensor)."
    )


def labelled(model: nn.Module, batch: Any) -> Any:
    """A text is its own target, padding apart, for a model that takes labels and gives tokens.

    The ids may come bare, or alone in a tuple, as a ``TensorDataset`` gives them.
    """
    alone = batch[0] if isinstance(batch, tuple | list) and len(batch) == 1 else batch
    bare = isinstance(alone, Tensor) and alone.dtype in (torch.int64, torch.int32)
    text = {"input_ids": alone} if bare else batch
    if not isinstance(text, Mapping) or "labels" in text or "input_ids" not in text:
        return batch
    tokens_from = getattr(model, "get_output_embeddings", lambda: None if bare else model)
    wanted = {"labels", "input_ids"} if bare else {"labels"}
    if tokens_from() is None or not wanted <= inspect.signature(model.forward).parameters.keys():
        return batch
    labels = text["input_ids"]
    if "attention_mask" in text:
        labels = labels.masked_fill(text["attention_mask"] == 0, -100)
    return {**text, "labels": labels}


def task_loss(output: Any, batch: Any, loss: Loss | None = None) -> Tensor:
    """The training loss of one batch.

    ``loss(output, target)`` if given; else the output's own ``loss`` (Hugging Face); else cross
    entropy for an integer target and mean squared error for a floating one.
    """
    target = target_of(batch)
    try:
        if loss is not None:
            value = loss(output, batch if target is None else target)
        elif _own_loss(output) is not None:
            value = _own_loss(output)
        elif isinstance(target, Tensor):
            value = _default_loss(logits_of(output), target)
        else:
            raise DataError(
                f"no loss follows from the batch {describe(batch)}: give (inputs..., target) "
                "batches, labels that the model turns into output.loss, or "
                "loss=lambda output, target: ..."
            )
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(
            f"the loss of output {describe(output)} and target {describe(target)} failed: "
            f"{words(error)}. Give targets that fit, or loss=lambda output, target: ..."
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise DataError(f"the loss must be one number, got {describe(value)}: reduce it by mean().")
    return value.reshape(())


def _own_loss(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _default_loss(logits: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        if logits.shape != target.shape and logits.numel() == target.numel():
            logits = logits.reshape(target.shape)
        if logits.shape != target.shape:
            raise ValueError(f"shapes {list(logits.shape)} and {list(target.shape)} differ")
        return F.mse_loss(logits, target)
    classes_last = logits.shape[:-1] == target.shape
    classes_first = logits.shape[:1] + logits.shape[2:] == target.shape
    if classes_last and not classes_first:  # (batch, tokens, classes), as of language models
        logits = logits.flatten(0, -2)
        target = target.flatten()
    return F.cross_entropy(logits, target)


def tensors_of(value: Any, where: str = "") -> dict[str, Tensor]:
    """Every tensor of nested batches, by its place."""
    if isinstance(value, Tensor):
        return {where: value}
    pairs: Any = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    return {n: t for k, v in pairs for n, t in tensors_of(v, f"{where}.{k}").items()}
