"""Isometry: layers that keep lengths, made orthogonal at first and repaired after masking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonal(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""An orthogonal matrix of a weight's shape; for a convolution a delta-orthogonal kernel.

    $W^\top W = I$, or $W W^\top = I$ where there are fewer outputs than inputs. A convolution is
    zero but for its central tap, so that with padding to the same size it keeps lengths too.

    Args:
        weight: ``(out, in, ...)``, of which shape, dtype and device are taken.
        generator: On the CPU.

    Example:
        >>> w = orthogonal(torch.empty(5, 3, 3, 3), torch.Generator().manual_seed(0))
        >>> matrix = w[..., 1, 1]
        >>> torch.allclose(matrix.T @ matrix, torch.eye(3), atol=1e-6), w.count_nonzero()
        (True, tensor(15))

    Paper:
        arXiv:1806.05393 (delta-orthogonal); Saxe et al., arXiv:1312.6120.
    """
    matrix = torch.empty(weight.shape[:2])
    nn.init.orthogonal_(matrix, generator=generator)
    found = torch.zeros(weight.shape)
    centre: Any = (slice(None), slice(None), *(n // 2 for n in weight.shape[2:]))
    found[centre] = matrix
    return found.to(weight)


def departure(weight: Tensor) -> Tensor:
    r"""$\lVert W^\top W - I \rVert_F^2$, of the smaller of the two products; kernels are rows.

    Example:
        >>> departure(torch.eye(3)[:2]), departure(torch.zeros(2, 2))
        (tensor(0.), tensor(2.))
    """
    matrix = weight.flatten(1)
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return (gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)).square().sum()


def repair(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    steps: int = 100,
    lr: float = 0.03,
) -> dict[str, Tensor]:
    r"""Approximate isometry: $\min_W \lVert (C \odot W)^\top (C \odot W) - I \rVert_F^2$ by Adam.

    Data-free; layers are independent of one another.

    Args:
        weights: By name, ``(out, in, ...)``.
        masks: C, by name; what is masked is zero in the result.
        steps: Of Adam.
        lr: Of Adam.

    Returns:
        New weights by name, of the dtypes given; a layer that it does not bring nearer stays.

    Example:
        >>> w, mask = torch.eye(4) * 2, torch.eye(4).bool()
        >>> fixed = repair({"w": w}, {"w": mask})["w"]
        >>> bool(departure(fixed) < 1e-3), fixed.count_nonzero()
        (True, tensor(4))

    Paper:
        Lee et al., A signal propagation perspective for pruning neural networks at initialization,
        arXiv:1906.06307.
    """
    found = {}
    for name, given in weights.items():
        mask = masks[name].to(given.device)
        start = (given.detach() * mask).float()
        free = start.clone().requires_grad_()
        adam = torch.optim.Adam([free], lr=lr)
        for _ in range(steps):
            with torch.enable_grad():
                value = departure(free * mask)
            (free.grad,) = torch.autograd.grad(value, [free])
            adam.step()
        better = (free.detach() * mask).float()
        nearer = bool(departure(better) < departure(start))
        found[name] = (better if nearer else start).to(given.dtype)
    return found
