"""What the layers of a block multiply, summed over calibration: one sum a distinct input."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateur.engine.padding import no_padding_for_experts, tokens_now, unsure_now
from secateur.engine.products import Layer, Products
from secateur.engine.statistics import Stats
from secateur.errors import DataError


@dataclass
class Sums:
    """Sums over tokens of one input: float32, however the model computes."""

    tokens: int = 0
    first: Any = 0.0
    squares: Any = 0.0
    gram: Any = 0.0
    cross: Any = 0.0
    inputs: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, needs: Collection[str], dense: Tensor | None) -> None:
        self.tokens += len(x)
        self.first = self.first + x.sum(0)
        self.squares = self.squares + x.square().sum(0)
        if "gram" in needs:
            self.gram = self.gram + x.T @ x
        if "inputs" in needs:
            self.inputs.append(x.clone())
        if dense is not None:
            self.cross = self.cross + dense.T @ x


@dataclass
class Gathered:
    """Statistics of the inputs of a block's layers; layers with the same input share them.

    Args:
        weights: The block's weights by qualified name.
        needs: ``gram`` for the products of inputs x x'; ``cross`` for x_dense x', where x_dense is
            what the layer sees in the dense model; ``inputs`` for the inputs that this process has
            seen, one matrix a call; norms and means are always there. Layers that
            see only some of the tokens, as routed experts do, have no ``cross``: the dense model
            may send them others.
        only: Names of layers to look at; default: all.
        gradients: Of each sample's loss, by weight, where ``needs`` has ``gradients``.
    """

    weights: Mapping[str, Tensor]
    needs: Collection[str] = ()
    only: Collection[str] | None = None
    layers: dict[str, Layer] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    dense: dict[str, list[Tensor]] = field(default_factory=dict)
    routed: set[str] = field(default_factory=set)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Note during one forward of the dense model what each layer sees."""
        self.dense.clear()

        def see(layer: Layer, x: Tensor) -> None:
            if self.only is None or layer.name in self.only:
                self.dense.setdefault(layer.name, []).append(x.detach())

        with Products(self.weights, see):
            yield

    @contextmanager
    def watching(self, valid: Sequence[Tensor] = (), whole: bool = False) -> Iterator[None]:
        """Gather during one forward; rows of padding are ignored.

        Args:
            valid: Masks over the tokens of the sample, 1 = no padding, for a model that is called
                and not ``run``: a layer that sees as many rows as a mask has entries goes by it.
            whole: Experts are given the padding too, as a forward that is repeated needs it.
        """
        seen: dict[Any, str] = {}
        most = [0]
        alive: list[Tensor] = []  # so that no address is used twice during the forward
        rows = {m.numel(): m.flatten() != 0 for m in reversed(valid)}

        def see(layer: Layer, x: Tensor) -> None:
            if self.only is not None and layer.name not in self.only:
                return
            key = (
                x.untyped_storage().data_ptr(),
                x.storage_offset(),
                x.shape,
                x.stride(),
                x._version,
            )
            alive.append(x)
            first = seen.setdefault(key, layer.name)
            self.layers.setdefault(layer.name, layer)
            leader = self.leader.setdefault(layer.name, first)
            if leader != first:
                raise DataError(
                    f"{layer.name} had the input of {leader} on some samples and that of {first} "
                    "on others, so their statistics cannot be told apart: ignore= one of them"
                )
            if leader == layer.name:
                queue = self.dense.get(layer.name)
                dense = queue.pop(0) if queue else None
                most[0] = max(most[0], len(x))
                if "cross" in self.needs and (
                    len(x) < most[0] or dense is None or dense.shape != x.shape
                ):
                    self.routed.add(layer.name)
                    dense = None
                source, x = x, x.detach().float()
                dense = None if dense is None else dense.float()
                tokens = tokens_now()
                real = rows.get(len(x)) if tokens is None else tokens.rows(source, layer.name)
                self.unsure |= unsure_now()
                if real is not None:
                    x, dense = x[real], None if dense is None else dense[real]
                self.sums.setdefault(layer.name, Sums()).add(x, self.needs, dense)

        with nullcontext() if whole else no_padding_for_experts(), Products(self.weights, see):
            yield
        for name, sums in self.sums.items():
            if not bool(torch.isfinite(sums.squares).all()):
                raise DataError(
                    f"the input of {name} is NaN or infinite on this calibration sample: look for "
                    "overflow in the model's type (run it in float32) and for broken weights"
                )

    def groups(self) -> list[list[Layer]]:
        """Layers by distinct input, in the order of the calls."""
        return [
            [self.layers[n] for n, leader in self.leader.items() if leader == name]
            for name in self.sums
        ]

    def stats(self, layer: Layer) -> Stats:
        """The statistics of a layer's input: ``tokens``, ``input_norm``, ``input_mean``, ``gram``.

        All are means over tokens, so none depends on how much calibration there was.
        """
        sums = self.sums[self.leader[layer.name]]
        n = max(sums.tokens, 1)
        values = {"input_norm": (sums.squares / n).sqrt(), "input_mean": sums.first / n}
        if "gram" in self.needs:
            values["gram"] = sums.gram / n
        if "cross" in self.needs and self.leader[layer.name] not in self.routed:
            values["cross"] = sums.cross / n
        if "inputs" in self.needs:
            values["inputs"] = sums.inputs
        if "gradients" in self.needs:
            of_samples = self.gradients[layer.parameter]
            values["gradients"] = torch.stack([layer.of(g) for g in of_samples])
        return Stats(layer.name, tokens=sums.tokens, **values)
