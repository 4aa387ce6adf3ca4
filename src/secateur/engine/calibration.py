"""Calibration batches, refused where the model cannot take their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.engine.batches import inputs_of
from secateur.errors import DataError
from secateur.measure.calling import named_inputs


def calibration(model: nn.Module, data: Iterable[Any] | None) -> Iterator[Any]:
    """The batches, refused where the model cannot take them."""
    if data is None or isinstance(data, str | bytes | Tensor) or not isinstance(data, Iterable):
        raise DataError(
            f"this method needs calibration data, got {type(data).__name__}: give data=, a list or "
            'loader of batches, as [{"input_ids": ids}, ...]; or method="magnitude"'
        )
    index = -1
    for index, batch in enumerate(checked(model, data)):  # noqa: B007
        yield batch
    if index < 0:
        raise DataError(
            "calibration has no batch: give at least one (a generator can be read only once)"
        )


def checked(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches as they are, refused where they hold tokens that the model does not take.

    An embedding that is asked for a token it does not have can only say that an index is out of
    range; a rotary model does not say at all that a text is longer than what it knows.
    """
    limits = {"input_ids": _limits(model), "decoder_input_ids": _limits(model, decoder=True)}
    known = any(limit != Limits(None, None) for limit in limits.values())
    for index, batch in enumerate(batches):
        given = named_inputs(model, inputs_of(batch)) if known else {}
        for name, limit in limits.items():
            ids = given.get(name)
            if isinstance(ids, Tensor) and not ids.is_floating_point():
                limit.check(ids, f"calibration batch {index}", name)
        yield batch


@dataclass(frozen=True)
class Limits:
    """What tokens a model takes; None where it does not say.

    Attributes:
        known: How many there are.
        longest: How many at once.
    """

    known: int | None
    longest: int | None

    def check(self, ids: Tensor, where: str, name: str) -> None:
        """Refuse tokens that the model cannot take, with the place that they are at."""
        what = "token" if name == "input_ids" else f"token in {name}"
        if not ids.numel():
            raise DataError(f"{where} has no {what}: give longer text")
        if self.known is not None:
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.known:
                raise DataError(
                    f"{where} has the {what} {low if low < 0 else high}, but the model knows "
                    f"{self.known}: tokenize the text with the model's own tokenizer"
                )
        if self.longest is not None and ids.shape[-1] > self.longest:
            tokens = what.replace("token", "tokens")
            raise DataError(
                f"{where} has {ids.shape[-1]} {tokens}, but the model takes at most "
                f"{self.longest}: cut the text into shorter pieces"
            )


def _limits(model: Any, decoder: bool = False) -> Limits:
    side: Any = model
    if decoder and callable(getattr(model, "get_decoder", None)):
        side = model.get_decoder()
    words = None
    for owner in (side, model):
        try:
            words = words or owner.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            continue
    known = getattr(words, "num_embeddings", None)
    config = getattr(model, "config", None)
    with suppress(AttributeError, ValueError, TypeError):  # no such method, or several texts
        config = config.get_text_config(**({"decoder": True} if decoder else {}))  # type: ignore[union-attr]
    longest = getattr(config, "max_position_embeddings", None)
    if type(longest) is not int or longest <= 0:
        return Limits(known, None)
    return Limits(known, longest - _reserved(side, longest))


def _reserved(model: nn.Module, longest: int) -> int:
    """Positions that no token has: those up to the one of padding, which RoBERTa counts from."""
    tables = (
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) and "position" in name.rpartition(".")[2]
    )
    taken = [t.padding_idx + 1 for t in tables
             if t.padding_idx is not None and t.num_embeddings == longest]  # fmt: skip
    return max(taken, default=0)
