"""Masks: which elements of which parameters stay, as data; eight elements a byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import ConfigError, PlanError, StoreError
from secateur.files import replacing
from secateur.names import match_names, unknown

FORMAT = "secateur-masks-1"
_DENSE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # of more than one dimension too
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase,
           nn.MultiheadAttention)  # fmt: skip
_NO_WEIGHTS = ("embed", "token", "position", "bias")  # in names of parameters of other modules


class MaskSet(Mapping[str, Tensor]):
    r"""Which elements stay: qualified name of a parameter -> bool tensor of its shape, True = keep.

    A value: nothing changes it, and every operation gives a new one. ``a & b`` keeps what both
    keep, ``a | b`` what either keeps, ``a - b`` what a keeps and b does not, ``~a`` what a does
    not; a parameter that only one of two names is whole in the other.

    Args:
        masks: The masks; they are packed into bits on the CPU, and unpacked when asked for.

    Raises:
        ConfigError: A mask that is no bool tensor.

    Example:
        >>> masks = MaskSet({"0.weight": torch.tensor([[True, False, False, False]])})
        >>> masks.sparsity, masks.kept, (masks | ~masks).sparsity
        (0.75, 1, 0.0)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ConfigError(f"the mask of {name} must be a bool tensor, got {kind}")
        self._bits = {n: _packed(m) for n, m in masks.items()}
        self._shapes = {n: tuple(m.shape) for n, m in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._bits:
            raise KeyError(unknown("mask", name, self._bits))
        return _unpacked(self._bits[name], self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MaskSet)
            and self._shapes == other._shapes
            and all(torch.equal(bits, other._bits[n]) for n, bits in self._bits.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} tensors, {self.kept} of {self.total} kept)"

    @property
    def total(self) -> int:
        """Elements of all masked parameters."""
        return sum(prod(shape) for shape in self._shapes.values())

    @property
    def kept(self) -> int:
        """Elements that stay."""
        return sum(int(m.sum()) for m in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the elements that goes."""
        return 1 - self.kept / self.total if self.total else 0.0

    def densities(self) -> dict[str, float]:
        """Fraction kept of each parameter."""
        return {n: float(m.float().mean()) if m.numel() else 1.0 for n, m in self.items()}

    def empty(self) -> list[str]:
        """Parameters of which nothing stays."""
        return [n for n, m in self.items() if m.numel() and not bool(m.any())]

    def beside(self, other: MaskSet) -> MaskSet:
        """These masks and the other ones; of a parameter that both name, the other mask.

        Example:
            >>> one, two = (MaskSet({n: torch.tensor([n == "a"])}) for n in "ab")
            >>> dict(one.beside(two))
            {'a': tensor([True]), 'b': tensor([False])}
        """
        both = MaskSet({})
        both._bits = self._bits | other._bits
        both._shapes = self._shapes | other._shapes
        return both

    def _with(self, other: MaskSet, join: Callable[[Tensor, Tensor], Tensor]) -> MaskSet:
        found = {}
        for name in [*self, *(n for n in other if n not in self)]:
            ours, theirs = self.get(name), other.get(name)
            known = ours if ours is not None else theirs
            assert known is not None
            if ours is not None and theirs is not None and ours.shape != theirs.shape:
                raise PlanError(
                    f"the masks of {name} have the shapes {list(ours.shape)} and "
                    f"{list(theirs.shape)}: they are of two models"
                )
            whole = torch.ones_like(known)
            a, b = (ours if ours is not None else whole), (theirs if theirs is not None else whole)
            found[name] = join(a, b)
        return MaskSet(found)

    def __and__(self, other: MaskSet) -> MaskSet:
        return self._with(other, torch.logical_and)

    def __or__(self, other: MaskSet) -> MaskSet:
        return self._with(other, torch.logical_or)

    def __sub__(self, other: MaskSet) -> MaskSet:
        return self._with(other, lambda a, b: a & ~b)

    def __invert__(self) -> MaskSet:
        return MaskSet({n: ~m for n, m in self.items()})

    def __le__(self, other: MaskSet) -> bool:
        """Whether everything that this set keeps is kept by the other too (nested masks)."""
        return (self - other).kept == 0

    def check(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the masks are of.

        Raises:
            PlanError: The model has no such parameter, or one of another shape.
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        for name, shape in self._shapes.items():
            if name not in named:
                raise PlanError(unknown("parameter of this model", name, named))
            if named[name].shape != shape:
                raise PlanError(
                    f"{name} has the shape {list(named[name].shape)}, its mask {list(shape)}: "
                    "the masks were made for another model"
                )
        return {n: named[n] for n in self}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set what goes to zero, in place.

        Raises:
            PlanError: The masks are of another model; it is as it was.
        """
        for name, parameter in self.check(model).items():
            parameter.masked_fill_(~self[name].to(parameter.device), 0)

    def save(self, path: str | Path) -> None:
        """Write the masks to one safetensors file, eight elements a byte, whole or not at all.

        Raises:
            StoreError: The file cannot be written; what was there before is untouched.

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/masks.safetensors"
            >>> masks = MaskSet({"w": torch.eye(3).bool()}); masks.save(path)
            >>> MaskSet.load(path) == masks
            True
        """
        metadata = {"format": FORMAT, "shapes": json.dumps(self._shapes)}
        try:
            with replacing(path) as temporary:
                save_file(self._bits, temporary, metadata)
        except (OSError, SafetensorError, ValueError) as error:
            raise StoreError(
                f"{path} could not be written: {error}. What was there before is untouched."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read what ``save`` wrote.

        Raises:
            StoreError: The file is missing, truncated, damaged or of another kind.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"{path} is missing, truncated or no file of masks: {error}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise StoreError(f"{path} holds no masks ({FORMAT}): give the file MaskSet.save wrote")
        try:
            shapes = json.loads(metadata["shapes"])
            if not isinstance(shapes, dict) or shapes.keys() != packed.keys():
                raise ValueError("its shapes are of other tensors")
            masks = cls({})
            masks._shapes = {n: _shape(packed[n], shape) for n, shape in shapes.items()}
            masks._bits = packed
            return masks
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}): make the masks again") from error


def keep_top(scores: Tensor, keep: int) -> Tensor:
    """The mask of the ``keep`` highest scores, exactly so many; ties go to the lower index.

    Args:
        scores: Any shape; NaN counts as the lowest.
        keep: How many stay, clamped to [0, number of scores].

    Returns:
        Bool, of the scores' shape.

    Example:
        >>> keep_top(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2)
        tensor([ True,  True, False, False])
    """
    flat = scores.detach().flatten().nan_to_num(nan=-torch.inf, posinf=None, neginf=None)
    if not 0 < keep < len(flat):
        return torch.full_like(scores, keep > 0, dtype=torch.bool)
    # Selecting the lowest that stays is ten times quicker than sorting.
    lowest = flat.kthvalue(len(flat) - keep + 1).values
    mask = flat > lowest
    mask[(flat == lowest).nonzero()[: keep - int(mask.sum()), 0]] = True
    return mask.view(scores.shape)


class Weights(dict[str, nn.Parameter]):
    """Weights by name.

    Attributes:
        inputs: Name -> the axis along which the inputs are, and how many each output has.
    """

    inputs: Mapping[str, tuple[int, int]] = {}


def inputs_of(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """The axis of a layer's weight that is summed over, and how many inputs each output has there.

    Example:
        >>> layer = nn.ConvTranspose2d(8, 6, 3, groups=2)
        >>> inputs_of(layer, layer.weight), inputs_of(nn.Linear(3, 2), torch.ones(2, 3))
        ((0, 4), (1, 3))
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 0, weight.shape[0] // module.groups
    axis = 0 if type(module).__name__ == "Conv1D" else 1
    return axis, weight.shape[axis]


def weights_of(model: nn.Module, ignore: Iterable[str] = ()) -> Weights:
    """The parameters that sparsity is usually about: weights of two and more dimensions.

    Biases, norms and embeddings stay dense, as in the literature, and what is shared with an
    embedding. Of modules that are not torch's own layers the matrices count, but for what is no
    matrix by its shape, as scales (channels, 1, 1) and positions (1, tokens, width), or by its
    name, as tokens and tables of positions. A ``MaskSet`` may name any parameter.

    Args:
        model: The model.
        ignore: Globs over names of parameters or of modules that stay dense.

    Raises:
        ConfigError: A glob that matches nothing.

    Example:
        >>> list(weights_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))))
        ['0.weight', '2.weight']
    """
    modules = dict(model.named_modules())
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in modules.values():
        for leaf, p in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(p, []).append((module, leaf))
    found = {
        n: p
        for n, p in model.named_parameters()
        if p.dim() > 1
        and p.is_floating_point()
        and not any(_stays_dense(module) for module, _ in owners[p])
        and any(_is_weight(module, leaf, p) for module, leaf in owners[p])
    }
    left: set[str] = set()
    names = [*modules, *(n for n, _ in model.named_parameters())]
    for pattern, matched in match_names(ignore, names).items():
        if not matched:
            raise ConfigError(unknown("module or parameter", pattern, names))
        left.update(matched)
    weights = Weights(
        (n, p)
        for n, p in found.items()
        if not any(n == hit or n.startswith(f"{hit}.") for hit in left if hit)
    )
    weights.inputs = {n: inputs_of(owners[p][0][0], p) for n, p in weights.items()}
    return weights


def _stays_dense(module: nn.Module) -> bool:
    own = not isinstance(module, _LAYERS) and "Embedding" in type(module).__name__
    return own or isinstance(module, _DENSE)


def _is_weight(module: nn.Module, leaf: str, p: Tensor) -> bool:
    """Whether a parameter of two and more dimensions is used as a weight by its owner."""
    if isinstance(module, _LAYERS) or type(module).__name__ == "Conv1D":
        return "bias" not in leaf and leaf != "weight_g"
    matrix = p.shape[0] > 1 and p.numel() > max(p.shape)
    return matrix and not any(word in leaf.lower() for word in _NO_WEIGHTS)


def _packed(mask: Tensor) -> Tensor:
    flat = mask.detach().flatten().cpu().numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def _unpacked(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).view(shape)


def _shape(packed: Tensor, said: Any) -> tuple[int, ...]:
    """The shape of a mask in a file, which its bits must fit."""
    if not isinstance(said, list) or not all(isinstance(n, int) and n >= 0 for n in said):
        raise ValueError(f"{said!r} is no shape")
    size = prod(said)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != -(-size // 8):
        raise ValueError(f"{len(packed)} bytes do not hold {size} bits")
    return tuple(said)
