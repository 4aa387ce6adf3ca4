"""``nn.MultiheadAttention`` with sizes of its own for heads, query/key width and value width.

The stock forward takes the head width as embed_dim / num_heads and cannot say anything else. The
module keeps its parameters and their names and becomes an instance of a subclass that can.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from secateur.plan.plan import Plan


class NarrowAttention(nn.MultiheadAttention):
    """Multi-head attention of widths ``qk_size`` and ``v_size``, with the old softmax scale."""

    qk_size: int
    v_size: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal=is_causal)
        weights: Tensor | None = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout, self.training)
            out = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
            if not batched:
                weights = weights.squeeze(0)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sizes = [self.qk_size, self.qk_size, self.v_size]
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.split(sizes)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        q, k, v = (
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def _mask(
        self,
        q: Tensor,
        k: Tensor,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        *,
        is_causal: bool,
    ) -> Tensor | None:
        if attn_mask is None and is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
            attn_mask = attn_mask.triu(1)
        total: Tensor | None = None
        if attn_mask is not None:
            total = _additive(attn_mask, q, k)
            if total.dim() == 3:  # one mask for every sample and head
                total = total.unflatten(0, (q.shape[0], -1))
        if padding is not None:
            columns = _additive(padding, q, k)[:, None, None]
            total = columns if total is None else total + columns
        return total


def _additive(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A mask as numbers to add to the scores, wide enough for appended keys."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -math.inf)
    return F.pad(mask, (0, k.shape[-2] - mask.shape[-1]))


def keeps_off_fast_path(model: nn.Module) -> bool:
    """True if some attention in a module can no longer be computed by the fused path."""
    return any(isinstance(m, NarrowAttention) for m in model.modules())


def narrow_attention(plan: Plan, path: str, module: nn.MultiheadAttention) -> None:
    """Turn a module whose projections the plan narrows into a ``NarrowAttention``."""
    prefix = f"{path}." if path else ""
    packed = module.in_proj_weight is not None
    names = ["in_proj_weight"] if packed else ["q_proj_weight", "v_proj_weight"]
    heads = plan.masks(f"{prefix}out_proj.weight")[1].view(module.num_heads, -1)
    rows = [plan.masks(prefix + n)[0] for n in names]
    if heads.all() and all(r.all() for r in rows):
        return
    if isinstance(module, NarrowAttention):  # pruned before
        width = module.qk_size
    else:
        width = module.embed_dim
        module.scale = module.head_dim**-0.5
    old_heads = module.num_heads
    module.__class__ = NarrowAttention
    assert isinstance(module, NarrowAttention)
    query = rows[0][:width] if packed else rows[0]
    value = rows[0][2 * width :] if packed else rows[1]
    module.qk_size, module.v_size = int(query.sum()), int(value.sum())
    module.num_heads = int(query.view(old_heads, -1).any(1).sum())
    module.head_dim = module.v_size // module.num_heads
    # Stock encoder layers have a fused path that reads the parameters; this keeps them off it.
    module._qkv_same_embed_dim = False
