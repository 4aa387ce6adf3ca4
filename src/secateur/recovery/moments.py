"""Second moments of a pruned layer's inputs with its error against the dense layer, in one pass."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.engine.batches import Forward, run
from secateur.engine.padding import valid_rows
from secateur.measure.calling import device_of, evaluating, to_device, unfused

_nothing = torch.zeros(())


@dataclass
class Moments:
    r"""Sums over samples: $X^\top X$, $X^\top E$, $\sum x$, $\sum e$, $\sum e^2$, $\sum y^2$.

    ``X`` has one row a token or output position, ``E = Y - (X W^T + b)`` is what the pruned layer
    lacks. On the CPU all is float64; elsewhere products are float32, and sums float64 if there is.
    """

    count: int = 0
    gram: Tensor = _nothing
    cross: Tensor = _nothing
    input_sum: Tensor = _nothing
    error_sum: Tensor = _nothing
    error_squares: Tensor = _nothing
    output_squares: Tensor = _nothing
    trouble: str = ""

    def add(self, inputs: Tensor, outputs: Tensor, wanted: Tensor) -> None:
        """Add rows: ``inputs (n, d)``, the layer's ``outputs (n, o)`` and the dense ones."""
        wide = torch.float32 if inputs.device.type == "mps" else torch.float64
        product = torch.float64 if inputs.device.type == "cpu" else torch.float32
        x, y = inputs.to(product), wanted.to(product)
        e = y - outputs.to(product)
        self.count += len(x)
        self.gram = self.gram.to(x.device) + (x.T @ x).to(wide)
        self.cross = self.cross.to(x.device) + (x.T @ e).to(wide)
        self.input_sum = self.input_sum.to(x.device) + x.sum(0, dtype=wide)
        self.error_sum = self.error_sum.to(x.device) + e.sum(0, dtype=wide)
        self.error_squares = self.error_squares.to(x.device) + e.square().sum(dtype=wide)
        self.output_squares = self.output_squares.to(x.device) + y.square().sum(dtype=wide)


def reconstructible(module: nn.Module, dense: nn.Module) -> str | None:
    """``None`` if the layer can be refitted; else why not (empty: it is no such layer)."""
    if "weight" not in module._parameters:
        smaller = _fewer_inputs(module, dense)
        return "its weight is computed from other parameters" if smaller else ""
    if isinstance(module, nn.Linear) or is_transposed(module):
        known = isinstance(dense, nn.Linear) or is_transposed(dense)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups != 1:
            return "grouped convolution" if _fewer_inputs(module, dense) else ""
        known = type(dense) is type(module) and dense.kernel_size == module.kernel_size
    elif isinstance(module, nn.modules.conv._ConvNd):
        return f"{type(module).__name__} is not supported" if _fewer_inputs(module, dense) else ""
    else:
        return ""
    return None if known else f"the dense model has a {type(dense).__name__} there"


def weight_rows(layer: nn.Module) -> Tensor:
    """The weight as ``(out, in, ...)``; a view where it is stored the other way round."""
    weight = layer.weight
    return weight.T if is_transposed(layer) else weight  # type: ignore[return-value, operator]


class _Answered(Exception):  # noqa: N818
    """Ends a forward once the last call that matters was made."""


def gather(
    model: nn.Module,
    dense: nn.Module,
    rows: Mapping[str, Tensor],
    batches: Iterable[Any],
    forward: Forward | None = None,
    calls: int = 0,
) -> dict[str, Moments]:
    """Run both models on the batches and sum up what the named layers see and lack.

    Args:
        model: the pruned model.
        dense: the dense one, with the same module names.
        rows: layer -> indices of the dense layer's outputs that the pruned layer still has.
        batches: what to run on.
        forward: as in the recoveries.
        calls: calls of the layers in one forward, after which it need not go on; 0: run to its end.
    """
    moments = {name: Moments() for name in rows}
    said: dict[str, deque[Tensor]] = defaultdict(deque)

    answered = 0

    def count() -> None:
        nonlocal answered
        answered += 1
        if answered == calls:
            raise _Answered

    def listen(name: str, index: Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            axis = _channel_axis(module)
            said[name].append(output.index_select(axis, index.to(output.device)))
            count()

        return hook

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            wanted = said[name].popleft().to(output.device) if said[name] else None
            if wanted is None or wanted.shape != output.shape:
                trouble = "the dense layer is called less often, or its outputs differ in shape"
                moments[name] = Moments(trouble=trouble)
            elif not moments[name].trouble:
                inputs = args[0] if args else kwargs["input"]
                axis = _channel_axis(module)
                size = output.shape[axis]
                lines = [t.movedim(axis, -1).reshape(-1, size) for t in (output, wanted)]
                valid = valid_rows(output.movedim(axis, -1), name)
                seen = (_patches(module, inputs), *lines)
                moments[name].add(*(seen if valid is None else (t[valid] for t in seen)))
            count()

        return hook

    with evaluating(model, dense), unfused(), ExitStack() as hooks:
        for name, index in rows.items():
            first = dense.get_submodule(name).register_forward_hook(listen(name, index))
            second = model.get_submodule(name).register_forward_hook(
                compare(name), with_kwargs=True
            )
            hooks.callback(first.remove)
            hooks.callback(second.remove)
        for batch in batches:
            for network in (dense, model):
                answered = 0
                with suppress(_Answered):
                    run(network, to_device(batch, device_of(network)), forward)
            said.clear()
    return moments


def execution_order(
    model: nn.Module, names: Iterable[str], batch: Any, forward: Forward | None = None
) -> dict[str, int]:
    """How often each named module is called on a batch, in the order of their first calls."""
    names, order = list(names), Counter[str]()
    with evaluating(model), unfused(), ExitStack() as hooks:
        for name in names:
            note = lambda *_, name=name: order.update([name])  # noqa: E731
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(note).remove)
        run(model, to_device(batch, device_of(model)), forward)
    return order | {name: 0 for name in names if name not in order}


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's inputs, one row an output position, columns in the order of the flat weight."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    flat = isinstance(layer, nn.Conv1d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    one = (1,) if flat else ()
    if x.dim() == (2 if flat else 3):
        x = x[None]
    columns = F.unfold(
        x.unsqueeze(2) if flat else x,
        one + tuple(layer.kernel_size),
        dilation=one + tuple(layer.dilation),
        stride=one + tuple(layer.stride),
    )
    return columns.transpose(1, 2).flatten(0, 1)


def _channel_axis(layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv1d):
        return -2
    return -3 if isinstance(layer, nn.Conv2d) else -1


def is_transposed(layer: nn.Module) -> bool:
    """Hugging Face's ``Conv1D``: a linear layer whose weight is stored as ``(in, out)``."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _fewer_inputs(module: nn.Module, dense: nn.Module) -> bool:
    new, old = getattr(module, "weight", None), getattr(dense, "weight", None)
    if not isinstance(new, Tensor) or not isinstance(old, Tensor) or new.dim() < 2 or old.dim() < 2:
        return False
    groups = (getattr(module, "groups", 1), getattr(dense, "groups", 1))
    return new.shape[1] * groups[0] < old.shape[1] * groups[1]
