"""Multiply-accumulates of one forward, in all and by module, from torch's flop counter."""

from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from secateur.measure.calling import call, device_of, evaluating, to_device, unfused

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _matrix_vector(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _add_matrix_vector(bias: Any, matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _mkldnn_rnn(x: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(w_input) + prod(w_hidden))


def _cudnn_rnn(x: Any, weights: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(w) for w in weights if len(w) == 2)


def _distances(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """One product: |a|^2 - 2ab + |b|^2, with the two squares as columns of their own."""
    return 2 * prod(a[:-1]) * b[-2] * (a[-1] + 2)


# Operators that torch's own registry leaves out: without them attention and recurrent layers on a
# CPU would count as nothing.
_MORE = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.addmv: _add_matrix_vector,
    aten._euclidean_dist: _distances,
    aten.mkldnn_rnn_layer: _mkldnn_rnn,
    aten._cudnn_rnn: _cudnn_rnn,
}


def macs(model: nn.Module, example_inputs: Any) -> tuple[int, dict[str, int]]:
    r"""Multiply-accumulates of one forward: $\text{MACs} = \text{FLOPs} / 2$.

    Counts matrix products, convolutions, attention and recurrent layers; not element-wise work.
    A model on the meta device is counted without a single number being computed.

    Args:
        model: any module; its mode and hooks are as before afterwards.
        example_inputs: a tensor, a tuple (positional) or a dict (keywords).

    Returns:
        The total, and the count by qualified module name (a parent includes its children).

    Raises:
        DataError: the model cannot be run on these inputs.

    Example:
        >>> macs(nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 4))
        (24, {'0': 24})
    """
    inputs = to_device(example_inputs, device_of(model)) if _on_meta(model) else example_inputs
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    with evaluating(model), unfused(), counter:
        call(model, inputs)
    root = type(model).__name__
    total = sum(counter.flop_counts["Global"].values()) // 2
    by_module = {
        name: sum(counter.flop_counts[f"{root}.{name}"].values()) // 2
        for name, _ in model.named_modules()
        if f"{root}.{name}" in counter.flop_counts
    }
    return total, by_module


def _on_meta(model: nn.Module) -> bool:
    return device_of(model).type == "meta"
