"""The masked model as a reference: statistical operators see only what the plan keeps.

Where a layer norm, a softmax or a mean runs over a prunable axis, zeroing is not removing. Under
this mode such an operator runs over the kept positions, and zeros stand where units are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.graph.classes import Axis, axis_mask
from secateur.plan.selection import Selection, gather, scatter, selection

if TYPE_CHECKING:
    from secateur.graph.graph import FrozenOp
    from secateur.plan.plan import Plan


class ReferenceError(Exception):
    """No reference could be computed."""


class Reference(TorchDispatchMode):
    """Evaluates statistical operators over the kept positions only."""

    def __init__(self, plan: Plan, ops: tuple[FrozenOp, ...]) -> None:
        super().__init__()
        from secateur.graph.capture import Dispatch

        self.plan = plan
        self.ops = ops
        self.position = 0
        self.dispatch = Dispatch()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self.dispatch.kind(func)
        if kind in ("silent", "alias"):
            return func(*args, **kwargs)
        if kind == "compound":
            done, result = self.dispatch.decomposed(self, func, args, kwargs)
            if done:
                return result
        op = self.ops[self.position] if self.position < len(self.ops) else None
        self.position += 1
        if op is None or op.name != str(func):
            raise ReferenceError(f"the operators of two runs differ at {func}")
        touched = any(self._cut(a) for axes in op.inputs for a in axes)
        if op.statistical and touched:
            return self._compressed(op, func, args, kwargs)
        result = func(*args, **kwargs)
        if touched and not func.is_view:
            self._clear(op, result)
        return result

    def _clear(self, op: FrozenOp, result: Any) -> None:
        """What is missing gives 0, not the 0 / 0 of a sum over nothing: 0 * nan would be seen."""
        many = isinstance(result, tuple | list)
        for out, made in zip(result if many else [result], op.outputs, strict=False):
            if isinstance(out, Tensor) and made is not None and not out.isfinite().all():
                kept = out.new_ones([self.plan.counts(a)[1] for a in made], dtype=torch.bool)
                out.masked_fill_(~out.isfinite() & ~self._scatter(kept, made), 0)

    def _cut(self, axis: Axis) -> bool:
        old, new = self.plan.counts(axis)
        return old != new

    def _compressed(self, op: FrozenOp, func: Any, args: Any, kwargs: Any) -> Any:
        """Gather the kept positions, run the operator on them, scatter its result among zeros."""
        leaves, spec = tree_flatten((args, kwargs))
        axes = iter(op.inputs)
        small = [self._gather(x, next(axes)) if isinstance(x, Tensor) else x for x in leaves]
        new_args, new_kwargs = tree_unflatten(small, spec)
        if "scaled_dot_product" in op.name:
            result: Any = _attention(func, args[0].shape[-1] ** -0.5, new_args, new_kwargs)
        else:
            result = func(*self._sizes(op, func, args, new_args), **new_kwargs)
        # Run as it is, too: its result has the memory layout that later operators depend on.
        plain = func(*args, **kwargs)
        many, full = isinstance(result, tuple | list), isinstance(plain, tuple | list)
        triples = zip(
            result if many else [result], plain if full else [plain], op.outputs, strict=False
        )
        for kept, out, made in triples:
            # Second outputs (saved statistics) have no axes of their own, and no reader here.
            if not isinstance(out, Tensor) or made is None:
                continue
            if tuple(kept.shape) == tuple(self.plan.counts(a)[1] for a in made):
                out.copy_(self._scatter(kept, made))
        return plain

    def _sizes(self, op: FrozenOp, func: Any, args: Any, new: Any) -> Any:
        """Size arguments of the operators that have them follow the gathered input."""
        name = func.overloadpacket.__name__
        if name in ("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm"):
            dims = len(args[1])
            return (new[0], list(new[0].shape[-dims:]), *new[2:])
        if name == "native_group_norm":
            batch, channels = new[0].shape[:2]
            groups = self._groups(op, args[6])
            return (*new[:3], batch, channels, new[0][0, 0].numel(), groups, *new[7:])
        if name == "convolution":
            return (*new[:8], self._groups(op, args[8]))
        return new

    def _groups(self, op: FrozenOp, count: int) -> int:
        """How many groups of channels keep anything."""
        channels = op.inputs[0][1]
        if isinstance(channels, int):
            return count
        kept = axis_mask(channels, self.plan.keep, self.plan.sizes)
        return int(kept.view(count, -1).any(1).sum())

    def _selection(self, axes: tuple[Axis, ...]) -> Selection:
        return selection(axes, self.plan.keep, self.plan.sizes)

    def _gather(self, t: Tensor, axes: tuple[Axis, ...]) -> Tensor:
        return gather(t, self._selection(axes))

    def _scatter(self, t: Tensor, axes: tuple[Axis, ...]) -> Tensor:
        return scatter(t, self._selection(axes), [self.plan.counts(a)[0] for a in axes])


def _attention(func: Any, scale: float, args: Any, kwargs: Any) -> Tensor:
    """Attention over kept positions: any head widths, and the scale of the dense width."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    q, k, v = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask", given.get("attn_bias"))
    causal = bool(given.get("is_causal", False))
    k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    given_scale = given.get("scale")
    scores = q @ k.transpose(-2, -1) * (scale if given_scale is None else given_scale)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        )
    return scores.softmax(-1) @ v
