"""What sparse storage costs, in words: formulas of the formats, before anything is converted."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor

from secateur.errors import ConfigError

WORD = 32  # bits; a value or an index each take one


def words(tensor: Tensor) -> dict[str, int]:
    r"""Words that a tensor takes in each format; one of n rows and m columns with a nonzeros.

    | format | what is kept | words |
    |---|---|---|
    | dense | all values | $nm$ |
    | coo | row, column and value | $3a$ |
    | csr | column and value, and where rows begin | $2a + n + 1$ |
    | csc | row and value, and where columns begin | $2a + m + 1$ |
    | bitmask | values, and a bit for each place | $a + \lceil nm / 32 \rceil$ |

    Args:
        tensor: Two or more dimensions; those after the first are columns.

    Returns:
        Format -> words of 32 bits.

    Raises:
        ConfigError: A tensor of fewer dimensions.

    Example:
        >>> import torch
        >>> words(torch.eye(4))
        {'dense': 16, 'coo': 12, 'csr': 13, 'csc': 13, 'bitmask': 5}
    """
    if tensor.dim() < 2:
        raise ConfigError(
            f"a tensor of shape {list(tensor.shape)} has no rows and columns: it is stored densely"
        )
    n, m = tensor.shape[0], prod(tensor.shape[1:])
    a = int(tensor.count_nonzero())
    return {
        "dense": n * m,
        "coo": 3 * a,
        "csr": 2 * a + n + 1,
        "csc": 2 * a + m + 1,
        "bitmask": a + -(-n * m // WORD),
    }


def total(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Words of all these tensors together, by format; those without columns are stored densely.

    Example:
        >>> import torch
        >>> total({"weight": torch.eye(4), "bias": torch.zeros(4)})["coo"]
        16
    """
    found = dict.fromkeys(("dense", "coo", "csr", "csc", "bitmask"), 0)
    for tensor in tensors.values():
        of = words(tensor) if tensor.dim() > 1 else dict.fromkeys(found, tensor.numel())
        for name in found:
            found[name] += of[name]
    return found
