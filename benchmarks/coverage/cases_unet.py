"""U-Nets: the original with crops, bilinear, residual, attention-gated, volumetric, diffusion."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from benchmarks.coverage.case import Case
from torch import Tensor, nn


def twice(before: int, after: int, norm: type[nn.Module] | None = nn.BatchNorm2d) -> nn.Sequential:
    """Two 3x3 convolutions, each with a norm (if any) and ReLU."""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers.append(nn.Conv2d(width, after, 3, padding=1))
        if norm is not None:
            layers.append(norm(after))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """Cut (or zero-pad, by negative amounts) the middle of ``x`` to the size of ``like``."""
    high, wide = (b - a for a, b in zip(x.shape[2:], like.shape[2:], strict=True))
    return F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])


class UNet(nn.Module):
    """arXiv:1505.04597 at three levels, with transposed convolutions or bilinear upsampling."""

    def __init__(self, bilinear: bool = False, norm: type[nn.Module] | None = nn.BatchNorm2d):
        super().__init__()
        widths = (12, 24, 40)
        self.down = nn.ModuleList(
            twice(a, b, norm) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.bottom = twice(40, 64, norm)
        ups, merges = [], []
        for below, width in ((64, 40), (40, 24), (24, 12)):
            ups.append(
                nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(below, width, 1)
                )
                if bilinear
                else nn.ConvTranspose2d(below, width, 2, 2)
            )
            merges.append(twice(2 * width, width, norm))
        self.up, self.merge = nn.ModuleList(ups), nn.ModuleList(merges)
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, crop(up(x), skip)], 1))
        return self.out(x)


class Residual(nn.Module):
    """Residual block with group norm, SiLU and an optional embedding added to every channel."""

    def __init__(self, before: int, after: int, embedding: int | None = None, groups: int = 4):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, before), nn.Conv2d(before, after, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, after), nn.Conv2d(after, after, 3, 1, 1)
        self.embed = nn.Linear(embedding, after) if embedding else None
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        if self.embed is not None and embedding is not None:
            y = y + self.embed(F.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SpatialAttention(nn.Module):
    """Self-attention over pixels with a packed 1x1 projection."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b * self.heads, -1, h * w).chunk(3, 1)
        scale = 1 / math.sqrt(q.shape[1])
        weights = torch.einsum("bct,bcs->bts", q * scale, k).softmax(-1)
        return x + self.out(torch.einsum("bts,bcs->bct", weights, v).reshape(b, -1, h, w))


class DiffusionUNet(nn.Module):
    """Denoiser of DDPM (arXiv:2006.11239): time embedding, residuals, attention in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.down1, self.down2 = Residual(16, 16, 32), Residual(16, 32, 32)
        self.shrink = nn.Conv2d(16, 16, 3, 2, 1)
        self.middle1, self.attention = Residual(32, 32, 32), SpatialAttention(32)
        self.middle2 = Residual(32, 32, 32)
        self.grow = nn.Conv2d(64, 16, 3, 1, 1)
        self.up = Residual(32, 16, 32)
        self.out = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, 1, 1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * torch.exp(-torch.arange(8) / 2)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        high = self.down1(self.stem(x), time)
        low = self.down2(self.shrink(high), time)
        middle = self.middle2(self.attention(self.middle1(low, time)), time)
        grown = F.interpolate(self.grow(torch.cat([low, middle], 1)), size=high.shape[2:])
        return self.out(self.up(torch.cat([high, grown], 1), time))


class AttentionGate(nn.Module):
    """Additive gate of Attention U-Net (arXiv:1804.03999)."""

    def __init__(self, width: int, below: int) -> None:
        super().__init__()
        self.skip, self.gate = nn.Conv2d(width, 8, 1), nn.Conv2d(below, 8, 1)
        self.weight = nn.Conv2d(8, 1, 1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        gate = F.interpolate(self.gate(below), size=skip.shape[2:], mode="bilinear")
        return skip * self.weight(F.relu(self.skip(skip) + gate)).sigmoid()


class AttentionUNet(nn.Module):
    """Two levels with gated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = twice(3, 12), twice(12, 24), twice(24, 40)
        self.gate2, self.gate1 = AttentionGate(24, 40), AttentionGate(12, 24)
        self.up2, self.up1 = twice(64, 24), twice(36, 12)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.avg_pool2d(first, 2))
        below = self.bottom(F.avg_pool2d(second, 2))
        for gate, up, skip in ((self.gate2, self.up2, second), (self.gate1, self.up1, first)):
            grown = F.interpolate(below, size=skip.shape[2:])
            below = up(torch.cat([gate(skip, below), grown], 1))
        return self.out(below)


class VolumeUNet(nn.Module):
    """3-D U-Net (arXiv:1606.06650) with instance norm and strided convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(before, after, 3, stride, 1),
                nn.InstanceNorm3d(after, affine=True),
                nn.LeakyReLU(0.01),
            )

        self.first, self.second, self.third = block(1, 8), block(8, 16, 2), block(16, 32, 2)
        self.up2 = nn.ConvTranspose3d(32, 16, 2, 2)
        self.merge2 = block(32, 16)
        self.up1 = nn.ConvTranspose3d(16, 8, 2, 2)
        self.merge1 = block(16, 8)
        self.out = nn.Conv3d(8, 3, 1)
        self.deep = nn.Conv3d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        second = self.second(first)
        middle = self.merge2(torch.cat([second, self.up2(self.third(second))], 1))
        top = self.merge1(torch.cat([first, self.up1(middle)], 1))
        return {"out": self.out(top), "deep": self.deep(middle)}


def cases() -> Iterator[Case]:
    """Yield the U-Nets."""
    networks = {
        "unet": UNet,
        "unet_bilinear": lambda: UNet(bilinear=True),
        "unet_plain": lambda: UNet(norm=None),
        "attention_unet": AttentionUNet,
    }
    for name, network in networks.items():
        yield Case(
            "unet",
            name,
            lambda network=network: (network().eval(), (torch.randn(2, 3, 37, 43),), {}),
        )
    yield Case(
        "unet", "volume_unet", lambda: (VolumeUNet().eval(), (torch.randn(2, 1, 12, 8, 16),), {})
    )
    yield Case(
        "unet",
        "diffusion_unet",
        lambda: (
            DiffusionUNet().eval(),
            (torch.randn(2, 3, 13, 13),),
            {"step": torch.tensor([3.0, 40.0])},
        ),
    )
