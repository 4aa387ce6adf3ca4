"""Tokens that go between the attention and the MLP of each block of a transformer.

A block that is its input plus what its two parts add is run in two halves: once without its MLP,
which gives the tokens after attention, and once on fewer tokens without its attention. So no
architecture has to be known; what attention saw is read off the call of torch's own function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from secateur.engine.batches import require
from secateur.engine.runtime import Counted, put
from secateur.engine.sequential import standing_in
from secateur.errors import PlanError
from secateur.methods.droppable import depth_of
from secateur.plan.gaps import Absent, Gap, first_of, first_replaced


@dataclass
class Attention:
    """What attention saw in one block.

    Attributes:
        query, key: ``(batch, heads, tokens, dimensions)``.
        scale: Of their products.
    """

    query: Tensor
    key: Tensor
    scale: float


class Reduce(Protocol):
    """From tokens to fewer."""

    def __call__(
        self, x: Tensor, size: Tensor, seen: Attention, block: int
    ) -> tuple[Tensor, Tensor]:
        """Fewer tokens, ``(batch, tokens, width)``, and of how many patches each is made."""


@dataclass
class Tokens:
    """What blocks tell one another during one forward, and what was left of how many."""

    size: Tensor | None = None
    left: dict[int, int] = field(default_factory=dict)


class _Watched(TorchFunctionMode):
    """Reads the queries and keys, and lets a token count as often as what it was merged from."""

    def __init__(self, size: Tensor | None) -> None:
        super().__init__()
        self.size = size
        self.seen: Attention | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if function is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            kwargs |= dict(zip(names, args, strict=False))
            query, key, given = kwargs["query"], kwargs["key"], kwargs.get("attn_mask")
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            self.seen = Attention(query, key, scale)
            if self.size is not None:
                weight = self.size.log().to(query.dtype)[:, None, None]
                if given is not None and given.dtype == torch.bool:
                    given = torch.zeros_like(given, dtype=query.dtype).masked_fill(
                        ~given, -torch.inf
                    )
                kwargs["attn_mask"] = weight if given is None else given + weight
            args = ()
        return function(*args, **kwargs)


class Halves:
    """The forward of one block, with fewer tokens after its attention."""

    def __init__(
        self, block: nn.Module, parts: tuple[nn.Module, nn.Module], gaps: tuple[Gap, Gap],
        number: int, tokens: Tokens, reduce: Reduce, proportional: bool,
    ) -> None:  # fmt: skip
        self.block, self.parts = block, parts
        self.absent = tuple(Absent(gap.outputs or 0) for gap in gaps)
        self.number, self.tokens, self.reduce = number, tokens, reduce
        self.proportional = proportional

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens, forward = self.tokens, type(self.block).forward
        if self.number == 0:
            tokens.size = None
        watched = _Watched(tokens.size if self.proportional else None)
        with watched, standing_in(self.parts[1], self.absent[1].forward):
            after = forward(self.block, *args, **kwargs)
        x = after[0] if isinstance(after, tuple) else after
        if watched.seen is None:
            raise PlanError(
                "the attention of this block does not call scaled_dot_product_attention: choose "
                'the implementation that does (attn_implementation="sdpa", fused_attn=True)'
            )
        size = tokens.size if tokens.size is not None else x.new_ones(x.shape[:2])
        fewer, size = self.reduce(x, size, watched.seen, self.number)
        if fewer is not x:
            tokens.size = size
        tokens.left[self.number] = fewer.shape[1]
        rest, named = _with_first(args, kwargs, fewer)
        with standing_in(self.parts[0], self.absent[0].forward):
            out = forward(self.block, *rest, **named)
        return first_replaced(after, out[0] if isinstance(out, tuple) else out)


def _with_first(args: Any, kwargs: Mapping[str, Any], x: Tensor) -> tuple[Any, dict[str, Any]]:
    first = first_of(args, kwargs)
    return (
        tuple(x if v is first else v for v in args),
        {n: x if v is first else v for n, v in kwargs.items()},
    )


def install_between(
    model: nn.Module, data: Iterable[Any] | None, reduce: Reduce, out: ExitStack,
    *, proportional: bool,
) -> Counted:  # fmt: skip
    """Reduce tokens in every block of a model; ``proportional`` weighs keys by their size.

    Raises:
        PlanError: Blocks are not the sum of their input, an attention and one more part.
    """
    some = require(data, "Leaving out tokens (one batch will do)", "data=")
    depth, tokens = depth_of(model, some, parts=True), Tokens()
    for number, name in enumerate(depth.blocks):
        gaps = [gap for gap in depth.candidates if depth.block_of(gap) == number]
        if len(gaps) != 2:
            raise PlanError(f"{name} has {len(gaps)} parts, not an attention and an MLP")
        parts = tuple(depth.module(gap.module) for gap in gaps)
        halves = Halves(depth.module(name), parts, tuple(gaps), number, tokens, reduce,  # type: ignore[arg-type]
                        proportional)  # fmt: skip
        put(depth.module(name), halves, out)
    depth.output(depth.batches[0])  # what does not run fails here
    return lambda: {"tokens": list(tokens.left.values())}
