"""What a solver of one layer is asked for and gives, and masks with exact counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from secateur.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """Which weights of a matrix may stay.

    Attributes:
        amount: Fraction to remove, in [0, 1].
        pattern: ``(n, m)``: n of every m consecutive inputs of an output go.
        keep: A mask that is given, True = stays; the other two are then not looked at.
        rows: ``(outputs,)``, how much an error of each output matters; scores are multiplied by it
            where outputs are compared with each other. Default: all the same.
    """

    amount: float = 0.5
    pattern: tuple[int, int] | None = None
    keep: Tensor | None = None
    rows: Tensor | None = None

    @property
    def kind(self) -> str:
        """Which of the three counts."""
        return "keep" if self.keep is not None else "pattern" if self.pattern else "amount"


@dataclass(frozen=True)
class Solved:
    """A matrix without what was removed.

    Attributes:
        weight: ``(outputs, inputs)``, zero where ``keep`` is False.
        keep: Boolean, of the same shape.
        note: What should be known about how it went; empty if nothing.
    """

    weight: Tensor
    keep: Tensor
    note: str = ""


_SHORT = 8  # rows in which comparing all pairs is quicker than selecting
ROWWISE = frozenset({"amount", "pattern", "keep"})  # of solvers without anything across rows


@dataclass(frozen=True)
class Solver:
    """A pure function from one layer, its statistics and a target to the pruned layer.

    Attributes:
        function: ``(weight, stats, target, **options) -> Solved``; weight ``(outputs, inputs)``.
        needs: ``gram`` and ``cross`` where norms and means of the inputs do not suffice;
            ``gradients`` for those of each sample's loss, ``(samples, outputs, inputs)``;
            ``inputs`` for the inputs themselves.
        data: False if it looks at weights alone, so that no calibration is run.
        rowwise: Kinds of target for which no row depends on another, so that processes can share
            a layer; ``amount``, ``pattern``, ``keep``.
        options: Keyword arguments of both functions.
        together: Of a method that couples layers: from all layers of a block that have statistics,
            the block's parameters by name, and the targets, to the statistics that each layer is
            to be solved with, ``aim`` among them being the weights that it starts from; and notes.
    """

    function: Callable[..., Solved]
    needs: frozenset[str] = frozenset()
    data: bool = True
    rowwise: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    together: Callable[..., Any] | None = None

    def __call__(self, weight: Tensor, stats: Any, target: Target) -> Solved:
        return self.function(weight, stats, target, **self.options)

    def coupled(
        self, layers: Any, parameters: Mapping[str, Tensor], target: Any
    ) -> tuple[Any, list[str]]:
        """The layers with the statistics to solve them with, theirs unless coupled; and notes."""
        if self.together is None:
            return layers, []
        return self.together(layers, parameters, target, **self.options)


def keep_best(scores: Tensor, target: Target, per: Literal["layer", "row"] = "layer") -> Tensor:
    """The mask that removes the lowest scores: exactly as many as asked, counted and not compared.

    Of ``n`` scores ``round(amount n)`` go; of equal ones the first goes first.

    Args:
        scores: ``(outputs, inputs)``, higher = keep, in proportion to the size of the weight.
        target: What to keep; its ``keep`` is returned if there is one.
        per: Compare within the layer or within each output. A pattern is always within groups.

    Raises:
        ConfigError: The number of inputs is no multiple of the pattern's m.

    Example:
        >>> keep_best(torch.tensor([[3.0, 10.0, 2.0, 2.0]]), Target(0.5))
        tensor([[ True,  True, False, False]])
    """
    if target.keep is not None:
        return target.keep
    if target.pattern is not None:
        gone, group = target.pattern
        if scores.shape[1] % group:
            raise ConfigError(
                f"{scores.shape[1]} inputs cannot be split into groups of {group}: leave this "
                "layer out with ignore=, or choose another pattern"
            )
        return _without_lowest(scores.reshape(-1, group), gone).view(scores.shape)
    if per == "row":
        return _without_lowest(scores, round(target.amount * scores.shape[1]))
    if target.rows is not None:
        scores = scores * target.rows.to(scores)[:, None]
    flat = scores.reshape(1, -1)
    return _without_lowest(flat, round(target.amount * flat.shape[1])).view(scores.shape)


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    if not 0 < count < scores.shape[1]:
        return torch.full_like(scores, count == 0, dtype=torch.bool)
    if scores.shape[1] <= _SHORT:
        return _before_each(scores) >= count
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    keep = scores > last
    if bool((keep.sum(1) == scores.shape[1] - count).all()):
        return keep
    equal = scores == last  # of those that equal the last one, the first go until it is enough
    more = count - scores.shape[1] + (keep | equal).sum(1, keepdim=True)
    return keep | (equal & (equal.cumsum(1, dtype=torch.int32) > more))


def _before_each(scores: Tensor) -> Tensor:
    """How many of its row go before each score, by comparing all pairs: quick for short rows."""
    columns = scores.T.contiguous()
    before = torch.zeros_like(columns, dtype=torch.uint8)
    for i, one in enumerate(columns):
        for j, other in enumerate(columns[:i]):
            first = other <= one
            before[i] += first
            before[j] += ~first
    return before.T.contiguous()


def parse_pattern(pattern: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """``"2:4"`` as ``(2, 4)``: n of every m consecutive inputs go.

    Raises:
        ConfigError: It is not two whole numbers, 0 < n < m.
    """
    if pattern is None:
        return None
    parts = pattern.split(":") if isinstance(pattern, str) else list(pattern)
    try:
        n, m = (int(part) for part in parts)
    except (TypeError, ValueError):
        n, m = 0, 0
    if not 0 < n < m:
        raise ConfigError(
            f'pattern={pattern!r}: write how many of how many inputs go, as "2:4" or "3:4"'
        )
    return n, m
