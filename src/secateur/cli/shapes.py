"""Example inputs from a text such as ``1x3x224x224`` or ``input_ids=2x16:int64:1000``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from secateur.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_FORM = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d*)(?::(?P<high>\d+))?)?"
)
HELP = (
    "shape of an example input: 1x3x224x224, 2x16:int64:1000 (whole numbers below 1000), or "
    "NAME=SHAPE for a keyword; once for every input"
)


def inputs(texts: Sequence[str], seed: int = 0) -> Any:
    """Random example inputs: a tuple of positional ones, or a dict where every one has a name.

    Floating inputs are normal, whole numbers uniform below their bound (2 if none is given), the
    same for the same seed.

    Raises:
        ConfigError: A text of another form, an unknown dtype, or names for some inputs only.

    Example:
        >>> [tuple(x.shape) for x in inputs(["2x3x8x8", "2x5:int64:10"])]
        [(2, 3, 8, 8), (2, 5)]
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = [_input(text, generator) for text in texts]
    named = [name for name, _ in made if name]
    if not named:
        return tuple(x for _, x in made)
    if len(set(named)) < len(made):
        raise ConfigError(f"inputs {', '.join(texts)}: give every input its own name, or none one")
    return dict(made)


def _input(text: str, generator: Any) -> tuple[str, Tensor]:
    import torch

    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is no shape of an input: write 1x3x224x224, 2x16:int64:1000, or "
            "NAME=2x16:int64:1000"
        )
    kind = match["dtype"] or "float32"
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"{text!r}: {kind} is no dtype of torch: write float32, int64, bool, ...")
    shape = [int(size) for size in match["shape"].split("x")]
    if dtype.is_floating_point and match["high"] is None:
        return match["name"] or "", torch.randn(shape, generator=generator).to(dtype)
    high = int(match["high"] or 2)
    if dtype.is_floating_point or dtype.is_complex or high < 1:
        raise ConfigError(f"{text!r}: a bound of at least 1 goes with whole numbers, as int64:1000")
    return match["name"] or "", torch.randint(high, shape, generator=generator).to(dtype)
