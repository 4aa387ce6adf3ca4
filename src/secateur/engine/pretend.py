"""The rest of a forward on tensors without data, where only the order of the calls is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from secateur.graph.forward import clean_caches, silent_fakes


class Pretend:
    """From ``begin`` on, operators compute shapes and nothing else.

    The head of a language model gives more numbers than all of its blocks.

    Attributes:
        begun: Whether it has.
    """

    def __init__(self) -> None:
        self.begun = False
        self.stack = ExitStack()

    def begin(self) -> None:
        """Enter the mode; ``pretending`` leaves it."""
        self.begun = True
        self.stack.enter_context(clean_caches())
        self.stack.enter_context(silent_fakes())
        self.stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


@contextmanager
def pretending(model: nn.Module) -> Iterator[Pretend]:
    """Nothing of what was pretended stays in the model or in caches of functions.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with pretending(net) as pretend:
        ...     pretend.begin()
        ...     type(net(torch.ones(1, 2))).__name__
        'FakeTensor'
    """
    before = [(space, dict(space)) for space in _spaces(model)]
    pretend = Pretend()
    try:
        with pretend.stack:
            yield pretend
    finally:
        for space, was in before if pretend.begun else ():
            for name in [n for n, value in space.items() if isinstance(value, FakeTensor)]:
                if name in was:
                    space[name] = was[name]
                else:
                    del space[name]


def _spaces(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What each module holds: its attributes and its buffers."""
    for module in model.modules():
        yield module.__dict__
        yield module._buffers
