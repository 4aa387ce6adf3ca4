"""Energy of a forward by a simple model: work times its price plus traffic times its price."""

from dataclasses import dataclass

import torch

SOURCE = (
    "model, not a measurement: 45 nm arithmetic from M. Horowitz, ISSCC 2014, fig. 1.1.9 "
    "(multiply + add); DRAM 640 pJ per 32 bits from Han et al., arXiv:1506.02626, table 1"
)
# Picojoules of one multiply and one add: 3.7 + 0.9, 1.1 + 0.4 and 0.2 + 0.03.
_PJ_PER_MAC = {32: 4.6, 16: 1.5, 8: 0.23}


@dataclass(frozen=True)
class Energy:
    """Millijoules of one forward under the model, with its two prices and their source."""

    millijoules: float
    pj_per_mac: float
    pj_per_byte: float
    bytes_moved: int
    source: str = SOURCE


def energy(
    macs: int,
    weight_bytes: int,
    activation_bytes: int,
    *,
    dtype: torch.dtype = torch.float32,
    pj_per_mac: float | None = None,
    pj_per_byte: float = 160.0,
) -> Energy:
    r"""A model, to compare with: $E = \text{MACs}\, e_\text{mac} + (B_w + 2 B_a)\, e_\text{byte}$.

    Weights are read once from DRAM, each activation is written once and read once; caches, static
    power and instruction overhead are left out, so that only ratios between models mean something.

    Args:
        macs: multiply-accumulates of the forward.
        weight_bytes: bytes of parameters and buffers, $B_w$.
        activation_bytes: bytes of all tensors made on the way, $B_a$.
        dtype: sets ``pj_per_mac`` by its width when that is ``None``.
        pj_per_mac: picojoules of one multiply-accumulate.
        pj_per_byte: picojoules of one byte to or from DRAM.

    Example:
        >>> energy(1_000_000, 0, 0).millijoules
        0.0046
    """
    if pj_per_mac is None:
        pj_per_mac = _PJ_PER_MAC.get(8 * dtype.itemsize, _PJ_PER_MAC[32])
    moved = weight_bytes + 2 * activation_bytes
    return Energy((macs * pj_per_mac + moved * pj_per_byte) * 1e-9, pj_per_mac, pj_per_byte, moved)
