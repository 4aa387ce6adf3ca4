"""What layers see: norms, means and products of their inputs, and how active each unit is."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.engine.dataflow import dataflow
from secateur.engine.padding import picked, unsure_note, unsure_now, valid_rows
from secateur.graph import Graph, UnitClass
from secateur.graph.classes import Axis, module_of, occurrences

log = logging.getLogger(__name__)
_POSITIONS = 10  # of each sample, at which contributions are looked at
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)


class _Hooks:
    """Hooks on some modules for a while, that can be put to sleep."""

    awake = True
    handles: list[Any]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


class LayerInputs(_Hooks):
    """Statistics of the inputs of linear and convolution layers, under the name of their weight.

    Of a convolution the features are the input channels and every pixel is a token.
    """

    def __init__(
        self, model: nn.Module, needs: Collection[str], only: Collection[str] | None = None
    ) -> None:
        self.needs = frozenset(needs)
        self.layers = {}
        for name, module in model.named_modules():
            axis = feature_axis(module)
            if axis is not None and (only is None or name in only):
                self.layers[f"{name}.weight".lstrip(".")] = (module, axis)
        self.spreads: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.samples: dict[str, tuple[int, Tensor]] = {}
        self.squares: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.grams: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.positions: dict[str, int] = {}
        self.contributions: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)  # of sampled positions
        self.unsure: set[str] = set()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.unsure:
            log.warning("%s", unsure_note(sorted(self.unsure)))

    def __enter__(self) -> LayerInputs:
        self.handles = [
            module.register_forward_pre_hook(self._hook(name, axis), with_kwargs=True)
            for name, (module, axis) in self.layers.items()
        ]
        return self

    def _hook(self, name: str, axis: int) -> Any:
        def see(_: Any, args: Any, kwargs: Any) -> None:
            x = first_tensor(args, kwargs)
            if not self.awake or x is None:
                return
            valid = valid_rows(x.movedim(axis, -1), name)
            self.unsure |= unsure_now()
            if "contribution" in self.needs:
                self._contribute(name, x.detach(), valid)
            x = x.detach().movedim(axis, -1).float()
            if "input_level" in self.needs:
                seen, total = self.samples.get(name, (0, x.new_zeros(x.shape[-1])))
                level = _levels(x, valid)
                self.samples[name] = (seen + len(level), total + level.square().sum(0))
            x = x.flatten(0, -2) if valid is None else picked(x, valid)
            self.tokens[name] = self.tokens.get(name, 0) + len(x)
            if "input_norm" in self.needs:
                self.squares[name] = self.squares.get(name, 0) + x.square().sum(0)
            if "input_mean" in self.needs:
                self.sums[name] = self.sums.get(name, 0) + x.sum(0)
            if "input_variance" in self.needs:
                self.spreads[name] = _merged(self.spreads.get(name), x)
            if "gram" in self.needs:
                self.grams[name] = self.grams.get(name, 0) + x.T @ x

        return see

    def _contribute(self, name: str, x: Tensor, valid: Tensor | None) -> None:
        found = contributions(self.layers[name][0], x, self.generator, valid)
        if found is not None:
            self.positions[name] = self.positions.get(name, 0) + found[0]
            self.contributions[name] = self.contributions.get(name, 0) + found[1]

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: {
                **({"input_norm": (self.squares[name] / n).sqrt()} if self.squares else {}),
                **({"input_mean": self.sums[name] / n} if self.sums else {}),
                **({"input_variance": self.spreads[name][2] / n} if self.spreads else {}),
                **({"input_level": _root(*self.samples[name])} if self.samples else {}),
                **({"gram": self.grams[name] / n} if self.grams else {}),
                **(
                    {"contribution": self.contributions[name] / self.positions[name]}
                    if name in self.contributions
                    else {}
                ),
            }
            for name, n in self.tokens.items()
        }


def contributions(
    module: nn.Module, x: Tensor, generator: torch.Generator, valid: Tensor | None = None
) -> tuple[int, Tensor] | None:
    r"""Products of what the input features add to the outputs, at a few positions of each sample.

    Feature c adds $Z_c$; the sum of all $Z_c$ is the output without its bias.

    Args:
        module: A linear or two-dimensional convolution layer; of others nothing is known.
        x: Its input.
        generator: Of the positions.
        valid: Which rows of the input are no padding; default: all.

    Returns:
        Number of positions, and $\sum \langle Z_c, Z_d \rangle$ over them, float32.
    """
    if isinstance(module, nn.Linear):
        rows = x.reshape(len(x) if x.dim() > 1 else 1, -1, x.shape[-1])
        some = _some(rows.shape[1], generator)
        valid = None if valid is None else valid.view(rows.shape[:2])[:, some].flatten()
        rows = picked(rows[:, some].float(), valid)
        weight = module.weight.detach().float()
        return len(rows), (rows.T @ rows) * (weight.T @ weight)
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or x.dim() != 4:
        return None
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    patches = nn.functional.unfold(
        x.float(), module.kernel_size, module.dilation, module.padding, module.stride
    )
    patches = patches[:, :, _some(patches.shape[2], generator)]
    patches = patches.movedim(2, 1).reshape(-1, x.shape[1], patches.shape[1] // x.shape[1])
    parts = torch.einsum("nck,ock->cno", patches, module.weight.detach().float().flatten(2))
    flat = parts.flatten(1)
    return len(patches), flat @ flat.T


def _some(positions: int, generator: torch.Generator) -> Tensor:
    """Ten of them at most, without repetition."""
    return torch.randperm(positions, generator=generator)[:_POSITIONS]


def _merged(before: tuple[int, Tensor, Tensor] | None, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of what was seen before and these rows together.

    Deviations from the mean are summed, never squares, whose difference float32 cannot hold.
    """
    mean = x.mean(0)
    spread = (x - mean).square().sum(0)
    if before is None:
        return len(x), mean, spread
    n, m = before[0], len(x)
    gap = mean - before[1]
    return (
        n + m,
        before[1] + gap * (m / (n + m)),
        before[2] + spread + gap.square() * (n * m / (n + m)),
    )


def _levels(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean sizes over the tokens of each sample that has any."""
    sizes = x.abs().reshape(len(x), -1, x.shape[-1])
    if valid is None:
        return sizes.mean(1)
    real = valid.view(len(x), -1, 1)
    count = real.sum(1)
    return ((sizes * real).sum(1) / count.clamp(min=1))[count[:, 0] > 0]


def _root(samples: int, total: Tensor) -> Tensor:
    return (total / samples).sqrt()


class ClassInputs(_Hooks):
    """How active each unit of a class is, in the inputs of the modules that consume it.

    That is what the next layers see, after whatever activation. A class that no module takes as its
    input is looked at in the last module output that carries it.
    """

    def __init__(self, graph: Graph, classes: Sequence[UnitClass], needs: Collection[str]) -> None:
        self.graph, self.needs = graph, frozenset(needs)
        self.sizes = {c.name: c.size for c in classes}
        self.inputs: dict[str, list[tuple[str, int, Tensor]]] = {}
        self.outputs: dict[str, list[tuple[str, int, Tensor]]] = {}
        inputs = module_inputs(graph)
        for c in classes:
            where, found = self.inputs, consumer_inputs(graph, c, inputs)
            if not found:
                where, found = self.outputs, last_output(graph, c)
            for module, dim, unit in found:
                where.setdefault(module, []).append((c.name, dim, unit))
        self.totals: dict[tuple[str, str], Tensor] = {}
        self.counts: dict[tuple[str, str], float] = {}

    def __enter__(self) -> ClassInputs:
        modules = dict(self.graph.model.named_modules())

        def before(m: str, at: list[tuple[str, int, Tensor]]) -> Any:
            def hook(_: Any, args: Any, kwargs: Any) -> None:
                self._see(m, first_tensor(args, kwargs), at)

            return hook

        def after(m: str, at: list[tuple[str, int, Tensor]]) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                self._see(m, first_tensor((output,), {}), at)

            return hook

        self.handles = [
            modules[m].register_forward_pre_hook(before(m, at), with_kwargs=True)
            for m, at in self.inputs.items()
        ] + [modules[m].register_forward_hook(after(m, at)) for m, at in self.outputs.items()]
        return self

    def _see(self, module: str, x: Tensor | None, at: Iterable[tuple[str, int, Tensor]]) -> None:
        if not self.awake or x is None:
            return
        for name, dim, unit in at:
            if -dim > x.dim() or x.shape[dim] != len(unit):
                continue
            rows = x.detach().movedim(dim, 0)
            flat = rows.reshape(len(unit), -1)
            valid = valid_rows(x.movedim(dim, -1), module)
            flat = flat if valid is None else flat[:, valid]
            if "activation" in self.needs:
                self._add(name, "activation", flat.float().abs().mean(1), unit)
            if "zero_fraction" in self.needs:
                self._add(name, "zero_fraction", (flat == 0).float().mean(1), unit)
            if "rank" in self.needs and dim == -3 and min(rows.shape[-2:]) > 1:
                maps = rows.reshape(-1, *rows.shape[-2:]).float()
                ranks = torch.linalg.matrix_rank(maps).float()
                self._add(name, "rank", ranks.view(len(unit), -1).mean(1), unit)

    def _add(self, name: str, need: str, values: Tensor, unit: Tensor) -> None:
        unit = unit.to(values.device)
        inside, size = unit >= 0, self.sizes[name]
        total = values.new_zeros(size).index_add(0, unit[inside], values[inside])
        each = torch.bincount(unit[inside], minlength=size).clamp(min=1)
        key = (name, need)
        self.totals[key] = self.totals.get(key, 0) + total / each
        self.counts[key] = self.counts.get(key, 0) + 1

    def result(self) -> dict[str, dict[str, Tensor]]:
        out: dict[str, dict[str, Tensor]] = {}
        for (name, need), total in self.totals.items():
            out.setdefault(name, {})[need] = total / self.counts[name, need]
        return out


def module_inputs(graph: Graph) -> dict[str, tuple[Axis, ...]]:
    """Axes of what each module's first product reads, which is the module's input."""
    flow = dataflow(graph)
    found: dict[str, tuple[Axis, ...]] = {}
    for op, data in zip(graph.ops, flow.inputs, strict=True):
        if op.work and data:
            found.setdefault(op.module, op.inputs[data[0]])
    return found


def consumer_inputs(
    graph: Graph, c: UnitClass, inputs: Mapping[str, tuple[Axis, ...]]
) -> list[tuple[str, int, Tensor]]:
    """Modules whose input carries the class: name, axis from the end, unit of each position."""
    consumers = dict.fromkeys(module_of(m.tensor) for m in c.members if not m.produces)
    return [place for m in consumers if m in inputs for place in _places(graph, m, inputs[m], c)]


def last_output(graph: Graph, c: UnitClass) -> list[tuple[str, int, Tensor]]:
    """The last module output that carries the class."""
    for module in reversed(list(graph.outputs)):
        found = _places(graph, module, graph.outputs[module], c)
        if found:
            return found
    return []


def _places(
    graph: Graph, module: str, axes: tuple[Axis, ...], c: UnitClass
) -> list[tuple[str, int, Tensor]]:
    return [
        (module, i - len(axes), unit)
        for i, axis in enumerate(axes)
        for name, unit in occurrences(axis, graph.sizes)
        if name == c.name
    ]


def feature_axis(module: nn.Module) -> int | None:
    """Which axis of a layer's input holds the features, counted from the end."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return -1
    if isinstance(module, _CONVOLUTIONS):
        return -1 - len(module.kernel_size)
    return None


def first_tensor(args: Any, kwargs: Any) -> Tensor | None:
    """The first tensor among the arguments of a call, or of an output."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
        if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
            return value[0]
    return None
