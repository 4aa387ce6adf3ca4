"""Answers from memory are what the fake mode would have answered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from secateur.graph import remembered
from secateur.graph.remembered import Remembered, called

CASES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "product": lambda x, w: x @ w,
    "whole number": lambda x, w: x.long() * 2,
    "number": lambda x, w: x.long() * 2.0,
    "truth": lambda x, w: x.long() * True,
    "transposed": lambda x, w: w.t(),
    "slice": lambda x, w: x[1:, 2:],
    "pieces": lambda x, w: x.split([1, 3], 1),
    "layer norm": lambda x, w: nn.functional.layer_norm(x, (4,)),
    "largest": lambda x, w: x.max(0),
    "in place": lambda x, w: x.clone().add_(1),
    "view of a view": lambda x, w: x.t()[1:].unsqueeze(0),
    "batch norm": lambda x, w: nn.functional.batch_norm(x, w[:, 0], w[:, 1], w[:, 2], w[:, 3]),
    "images": lambda x, w: nn.functional.conv2d(x[None, None], w[None, None, :2, :3]),
    "channels last": lambda x, w: nn.functional.pixel_shuffle(
        x.expand(2, 2, 3, 4).permute(0, 3, 1, 2), 2
    ),
}


def facts(value: Any, *inputs: Tensor) -> list[Any]:
    """Type, metadata and which inputs share the memory of each tensor."""
    found = list(value) if isinstance(value, tuple | list) else [value]
    storage = [t.untyped_storage()._cdata for t in inputs]
    return [type(value)] + [
        (
            *(type(t), t.shape, t.stride(), t.dtype, t.device, t.storage_offset()),
            [s == t.untyped_storage()._cdata for s in storage],
        )
        for t in found
    ]


@pytest.mark.parametrize("name", CASES)
def test_an_answer_from_memory_is_that_of_the_fake_mode(name: str) -> None:
    remembered._answers.clear()
    with FakeTensorMode() as mode, torch.no_grad():
        x, w = torch.randn(3, 4), torch.randn(4, 5)
        expected = facts(CASES[name](x, w), x, w)
        with Remembered(mode):
            for _ in range(2):  # first asked, then remembered
                result = CASES[name](x, w)
                assert facts(result, x, w) == expected
    assert remembered._answers


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Tensor], tuple[Any, ...]]]] = {
    "linear": (nn.functional.linear, lambda x, w: (x, w.t())),
    "the input itself": (Tensor.contiguous, lambda x, w: (x,)),
    "a parameter itself": (Tensor.contiguous, lambda x, w: (nn.Parameter(w),)),
    "no dropout": (nn.functional.dropout, lambda x, w: (x, 0.5, False)),
    "view": (Tensor.view, lambda x, w: (x, -1, 2)),
    "slice": (Tensor.__getitem__, lambda x, w: (x, (..., slice(1, None)))),
    "index": (Tensor.__getitem__, lambda x, w: (x, 1)),
    "truth as index": (Tensor.__getitem__, lambda x, w: (x, True)),
    "pieces": (Tensor.chunk, lambda x, w: (x, 2, 1)),
    "largest": (torch.max, lambda x, w: (x, 0)),
    "twice the same": (torch.cat, lambda x, w: ([x, x],)),
    "attention": (
        nn.functional.scaled_dot_product_attention,
        lambda x, w: (x[None, None], x[None, None] + 1, x[None, None] + 2),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_answered_from_memory_gives_what_calling_it_gives(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    remembered._answers.clear()
    with FakeTensorMode() as mode, torch.no_grad(), Remembered(mode):
        for _ in range(3):  # first asked, then remembered
            args = arguments(torch.randn(3, 4), torch.randn(4, 5))
            given = [a for a in args if isinstance(a, Tensor)]
            result, expected = called(function, args, {}), function(*args)
            assert facts(result, *given) == facts(expected, *given)
            assert [result is a for a in given] == [expected is a for a in given]


def test_a_function_is_answered_in_one_step_only_if_all_its_operators_were() -> None:
    remembered._answers.clear()
    with FakeTensorMode() as mode, torch.no_grad(), Remembered(mode) as memory:
        counted: list[Any] = []
        memory._again = lambda *a: counted.append(a) or Remembered._again(memory, *a)  # type: ignore
        for _ in range(2):
            counted.clear()
            called(nn.functional.linear, (torch.randn(3, 4), torch.randn(5, 4)), {})
        assert len(counted) == 1
        x = torch.zeros(3)
        for _ in range(2):  # what changes its input is never skipped
            version = x._version
            assert called(Tensor.add_, (x, 1), {}) is x and x._version > version
        with torch.enable_grad():
            w = torch.randn(5, 4, requires_grad=True)
            assert called(nn.functional.linear, (torch.randn(3, 4), w), {}).requires_grad


def test_a_function_of_somebody_else_is_always_called() -> None:
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x)
        return x * 2

    with FakeTensorMode() as mode, torch.no_grad(), Remembered(mode):
        for _ in range(2):
            called(function, (torch.randn(3),), {})
    assert len(seen) == 2


def test_every_answer_is_a_new_tensor() -> None:
    with FakeTensorMode() as mode, torch.no_grad(), Remembered(mode):
        x = torch.randn(3)
        first, second = x * 2, x * 2
        assert isinstance(first, FakeTensor) and first is not second
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


def test_the_default_dtype_is_part_of_the_question() -> None:
    before = torch.get_default_dtype()
    with FakeTensorMode() as mode, torch.no_grad(), Remembered(mode):
        x = torch.ones(3, dtype=torch.long)
        single = x / 2
        torch.set_default_dtype(torch.float64)
        try:
            double = x / 2
        finally:
            torch.set_default_dtype(before)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)


def test_parameters_become_what_the_fake_mode_makes_of_them() -> None:
    base = torch.randn(6, 4)
    tensors = {
        "plain": nn.Parameter(torch.randn(3, 4)),
        "whole": torch.arange(3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "head of a storage": base[:2],
        "tail of the same storage": base[2:],
    }
    mode = FakeTensorMode()
    made = Remembered(mode).fakes(tensors, {n: t.device for n, t in tensors.items()})
    expected = {n: FakeTensorMode().from_tensor(t, static_shapes=True) for n, t in tensors.items()}
    for name, t in made.items():
        assert facts(t) == facts(expected[name]), name
        assert t.requires_grad == tensors[name].requires_grad
    storages = [made[n].untyped_storage()._cdata for n in tensors]
    assert storages[3] == storages[4] and len(set(storages)) == 4
