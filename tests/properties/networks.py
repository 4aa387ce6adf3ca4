"""Random networks: a few random blocks on images, then a few on tokens, then a classifier.

Every block takes any number of channels and returns any number of channels, so all sequences run.
Forwards are written as people write them: sizes read off inputs, kept in attributes, or literal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, c, 3, padding=1)
        self.bn = nn.BatchNorm2d(c)
        self.b = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(F.relu(self.bn(self.a(x)))))


class Wide(nn.Module):
    """A plain convolution to a new width."""

    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.a(x)))


class Grouped(nn.Module):
    def __init__(self, c: int, groups: int, transposed: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, 4 * groups, 1)
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.g = kind(4 * groups, 2 * groups, 3, padding=1, groups=groups)
        self.out = nn.Conv2d(2 * groups, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.g(F.relu(self.a(x)))))


class Depthwise(nn.Module):
    def __init__(self, c: int, multiplier: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(c, 2 * c, 1)
        self.d = nn.Conv2d(2 * c, 2 * c * multiplier, 3, padding=1, groups=2 * c)
        self.s = nn.Conv2d(2 * c * multiplier, 2 * c * multiplier, 1)
        self.down = nn.Conv2d(2 * c * multiplier, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.d(F.relu6(self.up(x))))
        y = y * self.s(y.mean((2, 3), keepdim=True)).sigmoid()
        return x + self.down(y)


class Dense(nn.Module):
    """Concatenation with growth, as in DenseNet."""

    def __init__(self, c: int, growth: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, growth, 3, padding=1)
        self.b = nn.Conv2d(c + growth, growth, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, F.relu(self.a(x))], 1)
        return torch.cat([y, F.relu(self.b(y))], 1)


class Shuffle(nn.Module):
    """Half of the channels through a branch, then a channel shuffle."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c
        self.lift = nn.Conv2d(c, 2 * c, 1)
        self.a = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.lift(x).chunk(2, dim=1)
        y = torch.cat([left, F.relu(self.a(right))], 1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Gated(nn.Module):
    """A gated linear unit by uneven slices."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c
        self.a = nn.Conv2d(c, 2 * c + 3, 1)
        self.b = nn.Conv2d(3, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y[:, : self.c] * y[:, self.c : 2 * self.c].sigmoid() + self.b(y[:, 2 * self.c :])


class GroupNormed(nn.Module):
    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, 3 * groups, 1)
        self.n = nn.GroupNorm(groups, 3 * groups)
        self.b = nn.Conv2d(3 * groups, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.n(self.a(x))))


class Attention(nn.Module):
    """Grouped queries, rotary-free; the head count is an attribute, the width is read off."""

    def __init__(self, c: int, kv: int, per: int, dim: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.dim, self.fused = kv * per, kv, dim, fused
        self.norm = nn.LayerNorm(c)
        self.q = nn.Linear(c, self.heads * dim)
        self.k = nn.Linear(c, kv * dim)
        self.v = nn.Linear(c, kv * dim)
        self.o = nn.Linear(self.heads * dim, c)
        self.scale = dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, n, self.heads, self.dim).transpose(1, 2)
        k = self.k(y).view(b, n, self.kv, -1).transpose(1, 2)
        v = self.v(y).reshape(b, n, self.kv, self.dim).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        if self.fused:
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            z = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return x + self.o(z.transpose(1, 2).reshape(b, n, self.heads * self.dim))


class PackedAttention(nn.Module):
    """qkv in one matrix; the output is reshaped to the width of the input."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.lift = nn.Linear(c, 4 * heads)
        self.qkv = nn.Linear(4 * heads, 12 * heads)
        self.o = nn.Linear(4 * heads, c)

    def forward(self, x: Tensor) -> Tensor:
        x0, x = x, self.lift(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return x0 + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, c: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.a = nn.Linear(c, 6 * c if gated else 3 * c)
        self.b = nn.Linear(3 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return x + self.b(F.glu(y, -1) if self.gated else F.gelu(y))


class Recurrent(nn.Module):
    def __init__(self, c: int, kind: str, layers: int, both: bool) -> None:
        super().__init__()
        self.r = getattr(nn, kind)(c, c, layers, batch_first=True, bidirectional=both)
        self.o = nn.Linear(c * (2 if both else 1), c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.o(self.r(x)[0])


class Network(nn.Module):
    def __init__(
        self, width: int, images: list[nn.Module], tokens: list[nn.Module], flat: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.images = nn.Sequential(*images)
        self.tokens = nn.Sequential(*tokens)
        self.flat = flat
        with torch.no_grad():
            c = self.images(self.stem(torch.zeros(1, 3, 5, 5))).shape[1]
        self.mix = nn.Linear(c, width)
        self.head = nn.Linear(width * 25 if flat else width, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.images(F.relu(self.stem(x)))
        y = self.tokens(self.mix(y.flatten(2).transpose(1, 2)))
        return self.head(y.flatten(1) if self.flat else y.mean(1))
