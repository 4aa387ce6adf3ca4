"""The protocol of a recovery, and the names its members are found by."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

step_of_run: ContextVar[str] = ContextVar("step_of_run", default="")
members: dict[str, type] = {}
T = TypeVar("T", bound=type)


@runtime_checkable
class Recovery(Protocol):
    """What is done to a pruned model so that it is accurate again."""

    def heal(
        self,
        model: nn.Module,
        plan: Any = None,
        data: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> dict[str, Any]:
        """Heal ``model`` in place.

        Args:
            model: the pruned model; on an error it is given back as it came.
            plan: what was removed, where a member can use it.
            data: batches, ``(inputs..., target)`` tuples or dicts of keywords.
            teacher: the dense model, for the members that compare with it; never changed.

        Returns:
            A JSON-able report of what was done.
        """
        ...


@contextmanager
def step(number: int, count: int) -> Iterator[None]:
    """While this lasts, bars of recoveries say which of several steps they belong to."""
    token = step_of_run.set(f", step {number} of {count}" if count > 1 else "")
    try:
        yield
    finally:
        step_of_run.reset(token)


def member(name: str) -> Callable[[T], T]:
    """Register a frozen dataclass with a ``heal`` method under ``name``."""

    def register(cls: T) -> T:
        members[name] = cls
        return cls

    return register
