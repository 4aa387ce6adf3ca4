"""Validation batches of bilevel training: a loader read round and round, found again by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.errors import DataError


class Stream:
    """The batches of a loader in rounds; a resumed run finds its place by the batch's number.

    Example:
        >>> stream = Stream(["a", "b"])
        >>> [stream.batch(k) for k in (0, 1, 2, 5)]
        ['a', 'b', 'a', 'b']
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._next = 0
        self._batches: Iterator[Any] = iter(())

    def batch(self, number: int) -> Any:
        """The batch of this number, counted over all rounds.

        Raises:
            DataError: The loader yields no batch.
        """
        if number != self._next:
            length = len(self.loader) if isinstance(self.loader, Sized) else 0
            self._next = number - number % length if length else 0
            self._batches = iter(())
        while self._next < number:
            self._advance()
        return self._advance()

    def _advance(self) -> Any:
        end = object()
        batch = next(self._batches, end)
        if batch is end:
            self._batches = iter(self.loader)
            batch = next(self._batches, end)
        if batch is end:
            raise DataError(
                "validation= yielded no batch: give a non-empty DataLoader or list (a generator "
                "can be read only once)"
            )
        self._next += 1
        return batch


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use their running statistics and leave them; all else runs as it does."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
