"""Element by element operators: every operand's axes are the output's, up to broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.graph.axes import Axes, locked, resolve, unify
from secateur.graph.rules import aten, rule

if TYPE_CHECKING:
    from secateur.graph.capture import Op


# f(0) = 0: masked positions stay zero through these.
_KEEPS_ZERO = {
    "abs", "add", "alias", "asin", "atan", "bernoulli", "celu", "clone", "contiguous", "copy",
    "elu", "erf", "expm1", "floor", "ceil", "round", "gelu", "hardswish", "leaky_relu",
    "log1p", "mish", "native_dropout", "neg", "nan_to_num", "relu", "relu6", "rsub", "selu", "sgn",
    "sign", "silu", "sin", "sinh", "softshrink", "hardshrink", "sqrt", "square", "sub", "tan",
    "tanh", "to_copy", "trunc", "view_as_real", "view_as_complex", "real", "imag", "conj", "_conj",
    "_to_copy", "_prelu_kernel", "maximum", "minimum", "fmax", "fmin", "positive", "resolve_conj",
    "tril", "triu", "lerp", "where", "bitwise_and", "logical_and",
}  # fmt: skip
_PRODUCTS = {"mul", "_prelu_kernel", "bitwise_and", "logical_and"}
_QUOTIENTS = {"div", "true_divide", "floor_divide", "fmod", "remainder"}


def broadcast(op: Op, tensors: list[Tensor], shape: tuple[int, ...]) -> Axes:
    """The axes of the broadcast of ``tensors``: aligned at the end, size-one axes say nothing."""
    result: list[Any] = [None] * len(shape)
    for t in tensors:
        axes = op.axes(t)
        offset = len(shape) - len(axes)
        for i, e in enumerate(axes, offset):
            if e.size == 1 != shape[i]:
                continue
            if result[i] is None:
                result[i] = e
            else:
                unify(result[i], e)
    return [op.fixed(n) if e is None else resolve(e) for e, n in zip(result, shape, strict=True)]


def _covers(op: Op, t: Tensor, result: Axes) -> bool:
    """True if ``t`` has every axis of the result along which something can be removed."""
    axes = op.axes(t)
    offset = len(result) - len(axes)
    missing = [e for i, e in enumerate(result) if i < offset or axes[i - offset].size != e.size]
    return all(locked(e) for e in missing)


def clean(op: Op, t: Tensor, result: Axes) -> bool:
    """True if masking a unit along any axis of the result makes ``t`` zero there."""
    return op.is_zero(t) and _covers(op, t, result)


def _scalar_shift(op: Op) -> bool:
    """True if a number other than zero is added."""
    scalars = [op.given.get("other"), op.given.get("value"), op.given.get("min")]
    return any(isinstance(s, int | float) and not isinstance(s, bool) and s != 0 for s in scalars)


def stays_zero(op: Op, tensors: list[Tensor], result: Axes) -> bool:
    if not tensors:
        return False
    name = op.name.rstrip("_") if not op.name.startswith("_") else op.name
    if name in _PRODUCTS:
        return any(clean(op, t, result) for t in tensors)
    if name in _QUOTIENTS:
        return clean(op, tensors[0], result)
    if name == "pow":
        exponent = op.given.get("exponent")
        return isinstance(exponent, int | float) and exponent > 0 and op.is_zero(tensors[0])
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        low, high = (op.given.get(n, op.given.get(f"{n}_val")) for n in ("min", "max"))
        numbers = all(v is None or isinstance(v, int | float) for v in (low, high))
        within = numbers and (low is None or low <= 0) and (high is None or high >= 0)
        return bool(within) and op.is_zero(tensors[0])
    if name == "masked_fill":
        value = op.given.get("value")
        return value == 0 and clean(op, tensors[0], result)
    if name in ("addcmul", "addcdiv"):
        return all(clean(op, t, result) for t in tensors[:2])
    if name in ("add", "sub", "rsub", "maximum", "minimum") and _scalar_shift(op):
        return False
    if name == "bernoulli" and op.given.get("p") is not None:
        return False
    if name == "where":
        tensors = tensors[1:]
    return name in _KEEPS_ZERO and all(clean(op, t, result) for t in tensors)


def _not_for_zero(op: Op, tensors: list[Tensor]) -> Tensor | None:
    """The operand at whose zeros the result is infinite or undefined, if there is one."""
    name = op.name.rstrip("_")
    exponent = op.given.get("exponent")
    if name in ("log", "log2", "log10", "reciprocal", "rsqrt"):
        return tensors[0]
    if name == "pow" and isinstance(exponent, int | float) and exponent < 0:
        return tensors[0]
    divisor = op.given.get("tensor2" if name == "addcdiv" else "other")
    return divisor if name in {*_QUOTIENTS, "addcdiv"} and isinstance(divisor, Tensor) else None


@rule("pointwise", aten.clone, aten._to_copy, aten.copy, aten.native_dropout, aten.dropout)
@rule(
    aten.where,
    aten.masked_fill,
    aten.addcmul,
    aten.addcdiv,
    aten.lerp,
    aten.clamp,
    aten.view_as_real_copy,
)
@rule(
    aten.contiguous,
    aten.bernoulli,
    aten.bernoulli_,
    aten.celu,
    aten.nan_to_num,
    aten._conj,
    aten.conj,
)
@rule(
    aten.real, aten.imag, aten.resolve_conj, aten.resolve_neg, aten.prelu, aten.polar, aten.complex
)
@rule(aten._prelu_kernel, aten.rrelu_with_noise, aten.rrelu_with_noise_functional)
def pointwise(op: Op) -> Any:
    """All operands and the output are the same axes."""
    tensors = op.tensors()
    result = broadcast(op, tensors, op.shape)
    op.zero = stays_zero(op, tensors, result)
    below = _not_for_zero(op, tensors)
    if below is not None and op.is_zero(below):
        for e in op.axes(below):
            op.statistical(e, f"{op.name} of what masking makes zero")
    return result if isinstance(op.result, Tensor) else [list(result) for _ in op.outs]


@rule(aten.equal, aten.allclose, aten.is_nonzero, aten._local_scalar_dense)
def number(op: Op) -> Any:
    """A truth or a number: it has no axes, and what a forward does with it is in its calls."""
    return [None]


@rule(aten.tril, aten.triu)
def triangle(op: Op) -> Axes:
    """A mask by position: both axes keep their meaning only if nothing in them is removed."""
    axes = op.axes(op.arg("self"))
    for e in axes[-2:]:
        op.lock(e, "a triangular mask")
    return axes


@rule(aten.view_as_real)
def view_as_real(op: Op) -> Axes:
    return [*op.axes(op.arg("self")), op.fixed(2, "real and imaginary part")]


@rule(aten.view_as_complex)
def view_as_complex(op: Op) -> Axes:
    *rest, pair = op.axes(op.arg("self"))
    op.lock(pair, "real and imaginary part")
    return rest


@rule(aten.copy_)
def copy_(op: Op) -> Axes:
    """The target takes over the source: the same axes, and its old values are gone."""
    target, source = op.arg("self"), op.arg("src")
    result = broadcast(op, [target, source], op.shape)
    op.zero = clean(op, source, result)
    return result


@rule(aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.fill, aten.zero)
def fill_(op: Op) -> Axes:
    value = op.given.get("value")
    op.zero = op.name.startswith("zero") or (isinstance(value, int | float) and value == 0)
    return op.axes(op.arg("self"))


@rule(aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like, aten.rand_like)
@rule(aten.randn_like)
def like(op: Op) -> Axes:
    op.zero = op.name == "zeros_like"
    return op.axes(op.arg("self"))


@rule(aten.zeros, aten.ones, aten.full, aten.empty, aten.new_zeros, aten.new_ones, aten.new_full)
@rule(aten.new_empty, aten.empty_strided, aten.new_empty_strided)
def uniform(op: Op) -> Axes:
    """The same value everywhere: any position is as good as another, so its axes are free."""
    from secateur.graph.axes import Atom, one

    value = op.given.get("fill_value", 1)
    op.zero = "zeros" in op.name or "empty" in op.name or value == 0
    return [Atom(n) if n != 1 else one() for n in op.shape]


@rule(aten.arange, aten.linspace, aten.eye, aten.randn, aten.rand, aten.randint, aten.randperm)
@rule(aten.scalar_tensor, aten.logspace, aten.hann_window, aten.normal, aten.tril_indices)
@rule(aten.triu_indices)
def made(op: Op) -> Axes:
    """Different values by position: nothing in it can be removed."""
    op.zero = True
    return [op.fixed(n, "made by " + op.name) for n in op.shape]
